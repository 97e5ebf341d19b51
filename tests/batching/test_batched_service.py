"""Edge cases of `BatchedService`: restarts, drains, other event loops, and the bookkeeping of the queue."""

import asyncio
import gc
import random
import time
import weakref

import pytest

import streaminfer as si
from streaminfer.batching.queue import _queue_cy
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.testing import HANG, ScriptedBackend, VirtualLoop, run

pytestmark = pytest.mark.uncompiled


async def settle(*awaitables):
    return await asyncio.gather(*awaitables, return_exceptions=True)


# -- the queue --------------------------------------------------------------------------------------------------------


def test_completed_tickets_do_not_accumulate():
    """Tickets of completed requests leave the queue although their deadlines are far away."""
    queue = RequestQueue(4)
    kept = weakref.WeakSet()
    for number in range(1000):
        ticket = queue.admit(None, number, None, number, number + 10**12, 0)
        kept.add(ticket)
        queue.end(ticket)
    assert len(kept) <= 66
    assert queue.next_deadline_ns == NEVER


def test_earliest_deadline_is_known_after_clearing():
    """The queue still knows the earliest deadline after it clears the dead entries of completed requests."""
    queue = RequestQueue(1000)
    rng = random.Random(5)
    tickets = [queue.admit(None, n, None, 0, rng.randrange(10**9), 0) for n in range(400)]
    rng.shuffle(tickets)
    while tickets:
        queue.end(tickets.pop())
        assert queue.next_deadline_ns == min((ticket.deadline_ns for ticket in tickets), default=NEVER)


@pytest.mark.parametrize("seed", range(5))
def test_clearing_restores_order_from_the_top(seed):
    """Clearing dead entries restores the order of the heap from its top."""
    queue = RequestQueue(1000)
    rng = random.Random(seed)
    tickets = [queue.admit(None, n, None, 0, rng.randrange(10**9), 0) for n in range(400)]
    tickets.sort(key=lambda ticket: ticket.deadline_ns)
    for ticket in tickets[:201]:  # no read in between, so all become dead entries, one more than half
        queue.end(ticket)
    assert queue.next_deadline_ns == tickets[201].deadline_ns


def test_empty_priority_levels_are_freed():
    def levels():
        return sum(type(thing) is _queue_cy._Level for thing in gc.get_objects())

    before = levels()
    queue = RequestQueue(4)
    for priority in range(100):
        queue.end(queue.admit(None, None, None, 0, NEVER, priority))
    assert levels() - before <= 18


# -- the service ------------------------------------------------------------------------------------------------------


async def test_last_cancelled_caller_cancels_the_timer(loop):
    """When the last caller leaves and the batcher is idle, no timer remains in the loop."""
    service = si.AdaptiveBatcher(max_batch_size=1, slo_s=5.0, clock=loop.clock).wrap(ScriptedBackend(HANG))
    calls = [asyncio.ensure_future(service.call(si.Request(1.0))) for _ in range(2)]
    await asyncio.sleep(0.01)
    calls[1].cancel()
    await settle(calls[1])
    calls[0].cancel()
    await settle(calls[0])
    await asyncio.sleep(0.01)
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []


async def test_drain_ends_when_last_queued_caller_leaves(loop):
    """A drain ends when the last caller with a queued request leaves."""
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend())
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0)
    call.cancel()
    stopping = asyncio.ensure_future(batcher.stop(drain=True))
    await settle(call, stopping)
    assert batcher.statistics().cancelled == 1


async def test_admission_rejects_late_requests_with_reason(loop):
    service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(ScriptedBackend())
    late = service.admission(si.Request(1.0, deadline_ns=5), 5)
    assert (late.ok, late.reason) == (False, "deadline_exceeded")
    assert service.admission(si.Request(1.0, deadline_ns=6), 5).ok
    await service.stop(drain=True)
    assert service.admission(si.Request(1.0), 5) == (False, "closed", None, None)


async def test_restart_restores_policy_and_delay(loop):
    """A batcher that is stopped and started again uses its configured policy and queue delay."""
    batcher = si.AdaptiveBatcher(max_batch_size=9, policy="greedy", max_queue_delay_s=0.05, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend())
    await service.call(si.Request(1.0))
    await batcher.stop()
    await batcher.start()
    before_ns = loop.now_ns
    await service.call(si.Request(1.0))
    assert loop.now_ns - before_ns == 50_000_000


async def test_cancelled_caller_makes_room_in_the_same_turn(loop):
    """A cancelled caller makes room in the queue within the same iteration of the loop."""
    batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(duration_s=0.1))
    running = asyncio.ensure_future(service.call(si.Request(0.0)))
    await asyncio.sleep(0.01)
    gone = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0)
    gone.cancel()
    ticket = service.submit(si.Request(2.0), 2.0, None, 0)
    assert (await ticket.future) == 2.0
    await settle(running, gone)
    s = batcher.statistics()
    assert (s.cancelled, s.rejected, s.succeeded) == (1, {}, 2)


async def test_retry_after_counts_begun_batches_and_workers(loop):
    """`retry_after_s` counts a batch that is not full as a whole one, and divides the batches among all workers."""
    backend = ScriptedBackend(duration_s=0.1)
    service = si.AdaptiveBatcher(max_batch_size=2, max_queue_size=3, max_in_flight=2, clock=loop.clock).wrap(backend)
    await service.call(si.Request(0.0))
    running = [asyncio.ensure_future(service.call(si.Request(0.0))) for _ in range(4)]
    await asyncio.sleep(0.01)
    waiting = [asyncio.ensure_future(service.call(si.Request(0.0))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(si.Overloaded) as caught:
        await service.call(si.Request(0.0))
    assert caught.value.retry_after_s == pytest.approx(0.1)  # two batches, over two workers
    await settle(*running, *waiting)


async def test_stop_waits_for_a_backend_that_resists(loop):
    """A stop waits until a backend that delays its cancellation has ended."""

    class Resists(ScriptedBackend):
        async def infer(self, batch):
            try:
                return await super().infer(batch)
            finally:
                await asyncio.sleep(0.5)

    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(Resists(HANG))
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0.01)
    await batcher.stop(drain=False)
    assert loop.now_ns == 510_000_000
    assert batcher.statistics().running_batches == 0
    assert isinstance((await settle(call))[0], si.Closed)


async def test_drain_waits_for_an_abandoned_batch(loop):
    """A draining stop waits for a batch whose callers have left."""

    class Resists(ScriptedBackend):
        async def infer(self, batch):
            try:
                return await super().infer(batch)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
                raise

    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(Resists(HANG))
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.sleep(0.01)
    await batcher.stop(drain=True)
    assert loop.now_ns == 510_000_000


async def test_caller_cancelled_at_stop_counts_as_cancelled(loop):
    """A caller that is cancelled in the same loop iteration as the stop is counted as cancelled."""
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(HANG))
    calls = [asyncio.ensure_future(service.call(si.Request(1.0))) for _ in range(2)]
    await asyncio.sleep(0.01)
    calls[1].cancel()
    await batcher.stop(drain=False)
    await settle(*calls)
    s = batcher.statistics()
    assert (s.cancelled, s.closed, s.submitted) == (1, 1, 2)


def test_two_loops_are_an_error_while_requests_queue():
    """Using two loops at once is an error, even if the requests of the first loop are only queued."""
    batcher = si.AdaptiveBatcher(max_batch_size=2, policy="greedy", max_queue_delay_s=60.0)
    predict = batcher.wrap(lambda x: x)
    first = VirtualLoop()
    call = first.create_task(predict(1.0))
    first.run_until_complete(asyncio.sleep(0))

    async def second(loop):
        with pytest.raises(RuntimeError, match="another event loop"):
            await predict(1.0)

    run(second)
    call.cancel()
    first.run_until_complete(asyncio.wait([call]))
    first.close()


@pytest.mark.parametrize("turns", [1, 3])
def test_batcher_survives_loop_closed_with_requests(turns):
    """A batcher serves the next loop after a loop that was closed with requests in flight.

    The loop is closed without the clean-up of `asyncio.run`, with a dispatch due or with a running batch and a timer.
    """
    loops = [VirtualLoop()]
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=lambda: loops[-1].now_ns)
    service = batcher.wrap(ScriptedBackend(*[HANG] * (1 + (turns == 3))))
    dead = loops[0]
    left = dead.create_task(service.call(si.Request(1.0, deadline_ns=10**9)))
    for _ in range(turns):
        dead.call_soon(dead.stop)
        dead.run_forever()
    dead.close()

    async def main(loop):
        loops.append(loop)
        with pytest.raises(si.DeadlineExceeded):
            await service.call(si.Request(2.0, deadline_ns=3 * 10**9))
        assert loop.now_ns == 3 * 10**9
        assert (await service.call(si.Request(3.0))).outputs == 3.0

    run(main)
    s = batcher.statistics()
    assert (s.succeeded, s.closed, s.running_batches) == (1, 1, 0)
    left._log_destroy_pending = False


def test_futures_are_created_by_a_custom_loop():
    """A loop that overrides `create_future` creates the futures of requests."""

    class Own(VirtualLoop):
        made = 0

        def create_future(self):
            self.made += 1
            return super().create_future()

    loop = Own()
    service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(ScriptedBackend())
    before = loop.made
    loop.run_until_complete(service.call(si.Request(1.0)))
    loop.close()
    assert loop.made > before


class _Limited(ScriptedBackend):
    """Backend that knows its `max_batch_size` only after its start, like one that reads it from a server."""

    max_batch_size = None
    stopped = False

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    async def start(self):
        self.max_batch_size = self.limit

    async def stop(self, *, drain):
        self.stopped = True


class _Around:
    def __init__(self, inner):
        self.inner = inner
        self.infer = inner.infer

    @classmethod
    def wrap(cls, inner):
        return cls(inner)


@pytest.mark.parametrize("between", [(), (_Around,)])
def test_batch_size_above_backend_limit_fails_at_start(between):
    """A `max_batch_size` above the backend's limit raises `ValueError` at the start, and the backend is stopped."""

    async def main(loop):
        for limit, size in ((4, 4), (None, 64)):
            async with si.Stack(si.AdaptiveBatcher(max_batch_size=size), *between, _Limited(limit)) as stack:
                assert len(await asyncio.gather(*(stack(1.0) for _ in range(9)))) == 9
        backend = _Limited(4)
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=5), *between, backend)
        with pytest.raises(ValueError, match=r"^max_batch_size: expected at most 4, the most rows .*, got 5 "):
            await stack.start()
        assert backend.stopped
        outer = si.Stack(si.Stack(si.AdaptiveBatcher(max_batch_size=5), *between, _Limited(4)))
        with pytest.raises(ValueError, match="max_batch_size"):
            await outer.start()

    run(main)


@pytest.mark.parametrize("model", ["awaited", "inline"])
@pytest.mark.parametrize("failing", range(1, 31))
def test_a_clock_that_raises_leaves_no_caller_waiting(model, failing):
    """If the clock raises once, each request completes with a response or that error, and the batcher still serves."""
    backend = {
        "awaited": lambda: ScriptedBackend(duration_s=0.010),
        "inline": lambda: si.CpuBackend(lambda batch: batch, executor="inline"),
    }[model]()

    async def main(loop):
        calls = 0

        def clock():
            nonlocal calls
            calls += 1
            if calls == failing:
                raise RuntimeError("no time")
            return loop.clock()

        batcher = si.AdaptiveBatcher(max_batch_size=4, max_in_flight=2)
        async with si.Stack(batcher, backend, clock=clock) as service:
            calls = 0
            requests = [service(float(number), timeout_s=5.0 if number % 2 else None) for number in range(10)]
            ended = await asyncio.wait_for(settle(*requests), 60.0)
            calls = failing  # from here on the clock does not raise
            assert await service(1.0) == 1.0
        return {type(error) for error in ended if isinstance(error, BaseException)}

    assert run(main) <= {RuntimeError}


def test_system_clock_is_read_directly():
    """The system clock is called directly, without a wrapper."""
    service = si.AdaptiveBatcher(max_batch_size=4).wrap(ScriptedBackend())

    assert service._calls.clock is time.monotonic_ns


def test_closed_coroutine_is_a_cancelled_request():
    """A coroutine that is closed before its response arrives counts as a cancelled request.

    The garbage collector closes coroutines like this.
    """

    async def main(loop):
        service = si.AdaptiveBatcher(max_batch_size=2, clock=loop.clock).wrap(ScriptedBackend(duration_s=0.1))
        await service.start()
        call = service.call(si.Request(1.0))
        call.send(None)
        call.close()
        await service.stop(drain=True)
        return service.statistics().cancelled

    assert run(main) == 1
