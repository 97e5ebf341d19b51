"""Random scenarios of a batcher: every awaited call completes exactly once, on time and for the right reason.

Hypothesis draws a scenario: arrivals with deadlines, priorities and cancellations, bad rows, backends that are slow,
fail, hang or return impossible results, and a stop that drains or closes. The scenario runs in virtual time, so it
replays exactly. Then `check` compares each outcome with the outcomes that the scenario allows.
"""

import asyncio
from collections import Counter

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.batching.policy import Greedy
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class BadRow(Exception):
    pass


class BatchFailed(Exception):
    pass


@attrs.frozen
class Call:
    at_ms: int
    timeout_ms: int | None
    priority: int
    cancel_after_ms: int | None
    bad: bool


@attrs.frozen
class Life:
    calls: list
    steps: list
    duration_ms: int
    max_batch_size: int
    max_in_flight: int
    max_queue_size: int
    delay_ms: int | None
    stop_at_ms: int
    drain: bool
    ahead: bool


class AlwaysAhead(Greedy):
    """Policy that sends queued requests early whenever it can, and records impossible values that it is given."""

    full_size = 1

    def __init__(self, max_batch_size, max_in_flight):
        super().__init__(max_batch_size)
        object.__setattr__(self, "max_in_flight", max_in_flight)
        object.__setattr__(self, "impossible", [])

    def expect(self, holds, *told):
        if not holds:
            self.impossible.append(told)

    def choose_pipelined(self, queue, now_ns, running):
        self.expect(len(running) == self.max_in_flight, "running", running)
        self.expect(all(effective_start_ns <= now_ns for effective_start_ns, _ in running), "turns", running, now_ns)
        return self.decide(queue, now_ns, 0)

    def effective_start_ns(self, sent_ns, ended_ns):
        self.expect(sent_ns <= ended_ns, "turn", sent_ns, ended_ns)
        return ended_ns

    def observe(self, size, duration_ns, now_ns, cut_short, bucket):
        self.expect(size > 0 and 0 <= duration_ns <= now_ns, "observe", size, duration_ns, now_ns)
        return 0

    def observe_pipelined(self, size, busy_ns, now_ns, early_ns, bucket):
        possible = size > 0 and early_ns >= 0 and 0 <= busy_ns <= now_ns - early_ns
        self.expect(possible, "ahead", size, busy_ns, now_ns, early_ns)
        return 0


calls = st.builds(
    Call,
    at_ms=st.integers(0, 40),
    timeout_ms=st.none() | st.integers(0, 30),
    priority=st.sampled_from([0, 0, 0, -1, 2]),
    cancel_after_ms=st.none() | st.none() | st.integers(0, 20),
    bad=st.sampled_from([False, False, False, True]),
)
lives = st.builds(
    Life,
    calls=st.lists(calls, min_size=1, max_size=30),
    steps=st.lists(st.sampled_from(["ok", "ok", "fail", "hang", "short", "none"]), max_size=8),
    duration_ms=st.integers(0, 12),
    max_batch_size=st.integers(1, 6),
    max_in_flight=st.integers(1, 3),
    max_queue_size=st.integers(1, 8),
    delay_ms=st.none() | st.integers(0, 10),
    stop_at_ms=st.integers(0, 60),
    drain=st.booleans(),
    ahead=st.booleans(),
)


def rows_of(batch):
    return [BadRow(row) if row[1] else ("answer", row[0]) for row in batch.inputs]


STEPS = {
    "ok": rows_of,
    "fail": BatchFailed("scripted"),
    "hang": HANG,
    "short": lambda batch: rows_of(batch)[:-1],
    "none": lambda batch: None,
}


@attrs.define
class End:
    outcome: object
    at_ns: int
    ends: int = 0


async def live(loop, life):
    backend = ScriptedBackend(*(STEPS[step] for step in life.steps), then=rows_of, duration_s=life.duration_ms / 1000)
    backend.isolates_rows = True  # each request runs once: parts of failed batches have tests of their own
    batcher = si.AdaptiveBatcher(
        max_batch_size=life.max_batch_size,
        max_in_flight=life.max_in_flight,
        max_queue_size=life.max_queue_size,
        policy="greedy",
        max_queue_delay_s=0.0 if life.delay_ms is None else life.delay_ms / 1000,
        stack=False,
        clock=loop.clock,
    )
    service = batcher.wrap(backend)
    if life.ahead:
        # the backend begins an early batch at once, so that batch may end before its predecessor
        backend.queued_workers = life.max_in_flight
        policy = AlwaysAhead(life.max_batch_size, life.max_in_flight)
        service.change(None, life.max_batch_size, policy, service._calls.assembler)
    ends = {}
    unstarted = set()

    async def call(number, spec):
        await asyncio.sleep(spec.at_ms / 1000)
        unstarted.discard(number)
        deadline = None if spec.timeout_ms is None else spec.at_ms * MS + spec.timeout_ms * MS
        try:
            outcome = (
                await service.call(si.Request((number, spec.bad), deadline_ns=deadline, priority=spec.priority))
            ).outputs
        except asyncio.CancelledError:
            outcome = "cancelled"
        except Exception as error:
            outcome = error
        end = ends.setdefault(number, End(outcome, loop.now_ns))
        end.ends += 1

    async def cancel(task, number, spec):
        await asyncio.sleep((spec.at_ms + spec.cancel_after_ms) / 1000)
        if number not in unstarted:
            task.cancel()

    tasks = []
    for number, spec in enumerate(life.calls):
        unstarted.add(number)
        task = loop.create_task(call(number, spec))
        tasks.append(task)
        if spec.cancel_after_ms is not None:
            tasks.append(loop.create_task(cancel(task, number, spec)))
    await asyncio.sleep(life.stop_at_ms / 1000)
    stopping = loop.create_task(batcher.stop(drain=life.drain))
    # only cancelling the drain ends a hung batch of callers without a deadline
    await asyncio.wait([stopping], timeout=1.0)
    gave_up_ns = None
    if not stopping.done():
        gave_up_ns = loop.now_ns
        stopping.cancel()
    await asyncio.wait([stopping])
    stopped_ns = loop.now_ns
    await asyncio.wait(tasks)
    assert backend.running == 0
    assert all(task.done() for task in tasks)
    assert service._dispatcher.free == life.max_in_flight
    assert service._dispatcher.pipeline.batch is None
    if life.ahead:
        assert policy.impossible == []
    return ends, batcher.statistics(), backend, gave_up_ns, stopped_ns


def check(life, ends, s, backend, gave_up_ns, stopped_ns):
    step_of = {}
    for index, batch in enumerate(backend.batches):
        assert 1 <= len(batch) <= life.max_batch_size
        for row in batch.rows:
            assert row.inputs[0] not in step_of, "a request ran twice"
            step_of[row.inputs[0]] = life.steps[index] if index < len(life.steps) else "ok"
    kinds = Counter()
    for number, spec in enumerate(life.calls):
        end = ends[number]
        assert end.ends == 1
        at_ns, outcome = spec.at_ms * MS, end.outcome
        deadline_ns = None if spec.timeout_ms is None else at_ns + spec.timeout_ms * MS
        assert end.at_ns >= at_ns
        if deadline_ns is not None and spec.cancel_after_ms is None:
            assert end.at_ns <= max(deadline_ns, at_ns)
        kinds[type(outcome).__name__] += 1
        if outcome == ("answer", number):
            assert not spec.bad
            assert step_of[number] == "ok"
        elif outcome == "cancelled":
            assert end.at_ns == at_ns + spec.cancel_after_ms * MS
        elif isinstance(outcome, BadRow):
            assert spec.bad
            assert step_of[number] == "ok"
        elif isinstance(outcome, si.DeadlineExceeded):
            assert end.at_ns == deadline_ns
        elif isinstance(outcome, si.BackendError):
            assert step_of[number] in {"fail", "short", "none"}
            assert isinstance(outcome.__cause__, BatchFailed) == (step_of[number] == "fail")
        elif isinstance(outcome, si.Overloaded):
            assert outcome.retry_after_s is None or outcome.retry_after_s >= 0
            assert len(life.calls) > life.max_queue_size
        else:
            assert isinstance(outcome, si.Closed)
            assert end.at_ns >= life.stop_at_ms * MS
            if at_ns < life.stop_at_ms * MS:
                assert not life.drain or gave_up_ns == end.at_ns
    assert s.submitted == len(life.calls)
    assert (s.queued, s.running, s.running_batches) == (0, 0, 0)
    # a caller that is cancelled in the loop iteration that delivers its outcome is counted by that outcome
    crossed = [
        s.succeeded - kinds["tuple"],
        s.deadline_exceeded - kinds["DeadlineExceeded"],
        s.failed - kinds["BadRow"] - kinds["BackendError"],
        s.rejected.get("queue_full", 0) + s.rejected.get("shed", 0) - kinds["Overloaded"],
        s.closed + s.rejected.get("closed", 0) - kinds["Closed"],
    ]
    assert min(crossed) >= 0
    assert sum(crossed) == kinds["str"] - s.cancelled
    # a batch abandoned before its first step never reaches the backend
    assert len(backend.batches) <= s.batches == sum(s.batch_sizes.values()) == sum(s.released.values())


@settings(max_examples=400)
@given(life=lives)
def test_every_call_ends_once_for_the_right_reason(life):
    check(life, *run(lambda loop: live(loop, life)))


@settings(max_examples=30)
@given(life=lives)
def test_random_scenario_replays_exactly(life):
    def summary(ends, s, *_):
        return {number: (repr(end.outcome), end.at_ns) for number, end in ends.items()}, s

    assert summary(*run(lambda loop: live(loop, life))) == summary(*run(lambda loop: live(loop, life)))
