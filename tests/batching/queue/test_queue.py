"""The queue: no request is lost or completed twice, and requests of one priority stay in order."""

import importlib
import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import streaminfer as si
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER

pytestmark = pytest.mark.uncompiled


class Future:
    """Future that fails the test if it is settled twice."""

    def __init__(self):
        self.state = "open"
        self.value = None

    def done(self):
        return self.state != "open"

    def set_result(self, value):
        assert self.state == "open"
        self.state, self.value = "answered", value

    def set_exception(self, error):
        assert self.state == "open"
        self.state, self.value = "failed", error

    def cancel(self):
        assert self.state == "open"
        self.state = "cancelled"


class QueueMachine(RuleBasedStateMachine):
    """State machine that drives a queue at random and compares it with a model of plain lists."""

    def __init__(self):
        super().__init__()
        self.queue = RequestQueue(12)
        self.now_ns = 1000
        self.count = 0
        self.futures = {}
        self.queued = []  # (priority, number), the model
        self.running = []  # (run, {number, ...})
        self.tickets = {}
        self.deadlines = {}
        self.ended = set()

    def number_of(self, ticket):
        return next(number for number, known in self.tickets.items() if known is ticket)

    def live(self):
        return [number for number in self.tickets if number not in self.ended]

    @precondition(lambda self: len(self.queued) < 12)
    @rule(priority=st.sampled_from([0, 0, 0, 1, -5, 7]), timeout=st.none() | st.integers(0, 50))
    def admit(self, priority, timeout):
        number = self.count
        self.count += 1
        future = self.futures[number] = Future()
        deadline = NEVER if timeout is None else self.now_ns + timeout
        self.tickets[number] = self.queue.admit(("request", number), number, future, self.now_ns, deadline, priority)
        self.deadlines[number] = deadline
        self.queued.append((priority, number))

    @precondition(lambda self: self.queued)
    @rule(count=st.integers(1, 6))
    def take(self, count):
        expected = [number for _, number in sorted(self.queued)][:count]
        chosen = self.queue.first(count)
        assert [ticket.inputs for ticket in chosen] == expected
        run = self.queue.take(chosen, self.now_ns, "full")
        gone = {number for number in expected if self.futures[number].state == "cancelled"}
        assert list(run.inputs) == [number for number in expected if number not in gone]
        for number in gone:
            assert self.queue.end(self.tickets[number])
            self.ended.add(number)
        taken = set(expected) - gone
        self.queued = [(priority, number) for priority, number in self.queued if number not in taken | gone]
        if taken:
            self.running.append((run, taken))
            assert run.deadline_ns == max(self.deadlines[number] for number in taken)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def cancel_at_once(self, data):
        number = data.draw(st.sampled_from(self.live()))
        if not self.futures[number].done():
            self.futures[number].cancel()
        assert self.queue.end(self.tickets[number])
        assert not self.queue.end(self.tickets[number])
        self.forget(number)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def cancel_and_end_later(self, data):
        number = data.draw(st.sampled_from(self.live()))
        if not self.futures[number].done():
            self.futures[number].cancel()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), error=st.booleans())
    def deliver(self, data, error):
        run, numbers = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        rows = [
            ValueError(ticket) if error and index % 2 else ("row", index) for index, ticket in enumerate(run.tickets)
        ]
        answered, failed = self.queue.succeeded, self.queue.failed
        self.queue.deliver(run, rows, self.now_ns, self.now_ns)
        for index, ticket in enumerate(run.tickets):
            number = self.number_of(ticket)
            if number in self.ended:
                continue
            future = self.futures[number]
            if future.state == "cancelled":
                assert self.queue.end(ticket)
            else:
                is_error = isinstance(rows[index], ValueError)
                assert (future.value is rows[index]) != is_error
                assert future.state == ("failed" if is_error else "answered")
                assert ticket.timings.batch_size == len(run.tickets)
                answered += future.state == "answered"
                failed += future.state == "failed"
            self.ended.add(number)
        assert (self.queue.succeeded, self.queue.failed) == (answered, failed)
        assert not numbers - self.ended

    @rule(step=st.integers(0, 30))
    def time_passes(self, step):
        self.now_ns += step
        late = self.queue.expire(self.now_ns)
        expected = [number for number in self.live() if self.deadlines[number] <= self.now_ns]
        assert sorted(map(id, (future for future, _, _ in late))) == sorted(id(self.futures[n]) for n in expected)
        assert [self.deadlines_of(future) for future, _, _ in late] == sorted(self.deadlines[n] for n in expected)
        for future, run, _ in late:
            number = self.number_of_future(future)
            assert (run is None) == (number in {n for _, n in self.queued})
            self.forget(number)

    def number_of_future(self, future):
        return next(number for number, known in self.futures.items() if known is future)

    def deadlines_of(self, future):
        return self.deadlines[self.number_of_future(future)]

    def forget(self, number):
        self.ended.add(number)
        self.queued = [(priority, waiting) for priority, waiting in self.queued if waiting != number]
        for _, numbers in self.running:
            numbers.discard(number)

    @invariant()
    def counts_and_order_agree(self):
        assert len(self.queue) == self.queue.queued == len(self.queued)
        assert [ticket.inputs for ticket in self.queue] == [number for _, number in sorted(self.queued)]
        assert self.queue.running == sum(len(numbers) for _, numbers in self.running)
        assert all(run.live == len(numbers) for run, numbers in self.running)
        assert self.queue.full == (len(self.queued) == 12)
        last = self.queue.least_urgent()
        assert (None if last is None else last.inputs) == (max(self.queued)[1] if self.queued else None)
        deadlines = [self.deadlines[number] for number in self.live()]
        assert self.queue.next_deadline_ns == min(deadlines, default=NEVER)
        oldest = [self.tickets[number].enqueued_ns for _, number in self.queued]
        assert self.queue.oldest_ns == min(oldest, default=NEVER)

    @invariant()
    def ended_tickets_hold_nothing(self):
        for number in self.ended:
            ticket = self.tickets[number]
            assert ticket.state == "done"
            assert ticket.request is ticket.inputs is ticket.future is ticket.execution is None


TestQueue = QueueMachine.TestCase


def test_ended_requests_do_not_accumulate():
    queue = RequestQueue(4)
    for number in range(10_000):
        ticket = queue.admit(None, number, Future(), number, number + 10**12, 0)
        queue.end(ticket)
        assert len(queue) == 0
    assert queue.next_deadline_ns == NEVER


def test_many_priorities_are_served_in_order():
    """Requests of many priorities are served in order, and priorities without requests can be used again."""
    queue = RequestQueue(1000)
    priorities = list(range(-50, 50))
    random.Random(1).shuffle(priorities)
    for priority in priorities:
        queue.admit(None, priority, Future(), 0, NEVER, priority)
    assert [ticket.inputs for ticket in queue.first(1000)] == sorted(priorities)
    for ticket in queue.first(1000):
        queue.end(ticket)
    for priority in priorities:
        queue.admit(None, priority, Future(), 0, NEVER, priority)
        queue.end(queue.first(1)[0])
    assert len(queue) == 0


@pytest.mark.parametrize("row", [StopIteration(3), KeyboardInterrupt(), GeneratorExit()])
def test_rows_a_future_rejects_become_backend_errors(row):
    """An exception that a future does not accept reaches the caller as the cause of a `BackendError`."""
    from streaminfer.errors import BackendError

    queue = RequestQueue(4)
    future = Future()
    queue.admit(None, 1, future, 0, NEVER, 0)
    queue.deliver(queue.take(queue.first(1), 0, "full"), [row], 0, 0)
    assert isinstance(future.value, BackendError)
    assert future.value.__cause__ is row


def test_order_holds_while_many_priorities_come_and_go():
    """The queue removes empty lists of priorities, but never one with a queued request, so the order holds."""
    rng = random.Random(3)
    queue, waiting = RequestQueue(1000), []
    for number in range(3000):
        priority = rng.randrange(-60, 60)
        waiting.append((priority, number, queue.admit(None, number, None, number, NEVER, priority)))
        if rng.random() < 0.5 or len(waiting) > 40:
            for _ in range(rng.randrange(1, len(waiting) + 1)):
                assert queue.end(waiting.pop(rng.randrange(len(waiting)))[2])
        assert [ticket.inputs for ticket in queue] == [
            number for _, number, _ in sorted(waiting, key=lambda one: one[:2])
        ]
        assert queue.queued == len(waiting)


def run_at_random(module, seed):
    """Return a trace of what a queue returns for a random sequence of calls."""
    rng = random.Random(seed)
    queue = module.RequestQueue(64)
    now_ns, trace, runs, tickets = 0, [], [], []
    for step in range(400):
        now_ns += rng.randrange(10)
        action = rng.random()
        if action < 0.5 and not queue.full:
            deadline = now_ns + rng.randrange(60) if rng.random() < 0.7 else module.NEVER
            tickets.append(queue.admit(step, step, Future(), now_ns, deadline, rng.randrange(3)))
        elif action < 0.65:
            run = queue.take(queue.first(rng.randrange(1, 9)), now_ns, "full")
            runs.append(run)
            trace.append(("take", list(run.inputs), run.deadline_ns, run.started_ns))
        elif action < 0.75 and tickets:
            trace.append(("end", queue.end(rng.choice(tickets))))
        elif action < 0.85 and runs:
            run = runs.pop(rng.randrange(len(runs)))
            queue.deliver(run, list(range(len(run.tickets))), now_ns, now_ns + 3)
        else:
            trace.append(("expire", [timings.enqueued_ns for _, _, timings in queue.expire(now_ns)]))
        trace.append((queue.queued, queue.running, queue.succeeded, queue.next_deadline_ns, queue.oldest_ns))
        trace.append(round(queue.batch_s * 1e12))
        trace.append([queue.ahead_of_deadline(priority, now_ns - 20) for priority in range(3)])
    return trace


@pytest.mark.parametrize("seed", range(20))
def test_compiled_and_plain_agree(seed, plain):
    compiled = importlib.import_module("streaminfer.batching.queue._queue_cy")
    twin = plain("batching.queue._queue_cy")
    twin.Timings = plain("_request_cy").Timings  # an uncompiled queue fills uncompiled timings
    assert run_at_random(compiled, seed) == run_at_random(twin, seed)


def test_error_shared_by_several_callers_is_copied():
    """Each caller gets a copy of the error, so the traceback of an error that the model reuses does not grow."""
    queue = RequestQueue(8)
    futures = [Future(), Future()]
    run = queue.take([queue.admit(None, 1.0, future, 0, NEVER, 0) for future in futures], 0, "full")
    kept = si.InvalidInput("bad")

    queue.deliver(run, [kept, kept], 1, 2)

    first, second = (future.value for future in futures)
    assert first is not second
    assert kept not in (first, second)
    assert (type(first), first.args, kept.timings) == (si.InvalidInput, ("bad",), None)


def test_ahead_of_deadline_are_more_urgent_requests():
    """Ahead of a new request with a deadline are those with one, of its priority or a more urgent one."""
    queue = RequestQueue(64)
    for priority, deadline_ns in [(0, 9), (0, NEVER), (1, 9), (1, 20), (2, NEVER), (2, 9)]:
        queue.admit(None, 1.0, Future(), 5, deadline_ns, priority)
    assert [queue.ahead_of_deadline(priority, 5) for priority in (-1, 0, 1, 2)] == [0, 1, 3, 4]
    queue.end(queue.first(1)[0])
    assert queue.ahead_of_deadline(2, 5) == 3


def test_overdue_requests_have_their_part_of_batches():
    """Those without a deadline that have waited for long have as large a part of each batch as of the queue."""
    queue = RequestQueue(64)
    for now_ns in range(4):
        queue.admit(None, 1.0, Future(), now_ns, NEVER, 0)
    queue.admit(None, 1.0, Future(), 4, 100, 0)
    # two of six, with the new request, come first; while 0 to 4 of them are overdue, they need 2, 2, 3, 4, 6 places
    assert [queue.ahead_of_deadline(0, before_ns) for before_ns in (0, 1, 2, 3, 4)] == [1, 1, 2, 3, 5]


@pytest.mark.parametrize("seed", range(10))
def test_ahead_of_deadline_agrees_with_a_count(seed):
    """The number of more urgent requests is that of a count of all queued ones, whatever has left the queue."""
    rng, queue, tickets = random.Random(seed), RequestQueue(64), []
    for now_ns in range(300):
        if rng.random() < 0.6 and not queue.full:
            deadline_ns = rng.choice([NEVER, now_ns + rng.randrange(60)])
            tickets.append(queue.admit(None, 1.0, Future(), now_ns, deadline_ns, rng.randrange(3)))
        elif tickets:
            queue.end(tickets.pop(rng.randrange(len(tickets))))
        priority, before_ns = rng.randrange(3), now_ns - rng.randrange(40)
        ahead = sum(one.deadline_ns != NEVER and one.priority <= priority for one in queue)
        overdue = sum(one.deadline_ns == NEVER and one.timings.enqueued_ns < before_ns for one in queue)
        places = (ahead + 1) * (len(queue) + 1) // (len(queue) + 1 - overdue)
        assert queue.ahead_of_deadline(priority, before_ns) == min(places - 1, len(queue))
