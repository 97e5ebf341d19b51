"""Edge cases of the dispatcher: rejections by a policy, interrupts, batches cancelled early, the timer."""

import asyncio
import itertools
from collections.abc import Awaitable

import pytest

import streaminfer as si
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.policy import Decision
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


async def settle(*awaitables):
    return await asyncio.gather(*awaitables, return_exceptions=True)


async def test_deadline_before_dispatch_skips_the_model(loop):
    """A request whose deadline passes before the dispatch never reaches the model."""
    backend = ScriptedBackend()
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(backend)

    async def hold_up_the_loop():
        loop.now_ns += 10_000_000

    late, fine, _ = await settle(
        service.call(si.Request(1.0, deadline_ns=5_000_000)), service.call(si.Request(2.0)), hold_up_the_loop()
    )
    assert isinstance(late, si.DeadlineExceeded)
    assert fine.outputs == 2.0
    assert backend.batch_sizes == [1]


class RefusesOdd:
    """Policy that rejects every odd request and releases the others one by one."""

    def decide(self, queue, now_ns, free_workers):
        tickets = queue.first(8)
        reject = [ticket for ticket in tickets if ticket.inputs % 2]
        send = [ticket for ticket in tickets if not ticket.inputs % 2]
        return Decision(reject=reject) if reject else Decision(send[:1], "picked")


async def test_policy_rejections_end_at_once(loop):
    """A request that the policy rejects ends at once, and the rest of the queue is served."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(duration_s=1.0))
    service._dispatcher.policy = RefusesOdd()

    async def ask(x):
        try:
            return (await service.call(si.Request(x))).outputs
        except si.DeadlineExceeded as error:
            assert "rejected" in str(error)
            return "rejected", loop.now_ns

    assert await asyncio.gather(*map(ask, [0, 1, 2, 3])) == [0, ("rejected", 0), 2, ("rejected", 0)]
    s = batcher.statistics()
    assert (s.rejected, s.succeeded, s.released) == ({"infeasible": 2}, 2, {"picked": 2})


async def test_other_tasks_run_between_batches_on_the_loop(loop):
    """Other tasks get a turn between two batches of a function that runs on the event loop."""
    order = []
    predict = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(lambda x: order.append(f"batch {x[0]}") or x)

    async def ask(x):
        await predict(x)
        order.append(f"answer {x}")

    await asyncio.gather(ask(1), ask(2))
    assert order == ["batch 1", "answer 1", "batch 2", "answer 2"]


async def test_batch_without_callers_is_not_released(loop):
    """A batch whose only caller leaves in the same iteration of the loop is not released."""
    backend = ScriptedBackend()
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(backend)
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    loop.call_soon(loop.call_soon, call.cancel)  # just before the dispatch, after the arrival
    await asyncio.sleep(0)
    call.cancel()
    await settle(call)
    await asyncio.sleep(0.01)
    s = batcher.statistics()
    assert (s.batches, s.batch_sizes, s.cancelled, backend.batches) == (0, {}, 1, [])


class Blunt:
    """Backend whose ``infer`` is a plain function, which raises its next step or returns an awaitable of it."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def infer(self, batch) -> Awaitable:
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step

        async def answer():
            return step

        return answer()


async def test_backend_fails_before_first_await(loop):
    """A backend that fails before its first await raises `BackendError`, and its worker is free again."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(Blunt(KeyError("no session"), [7]))
    with pytest.raises(si.BackendError, match="no session"):
        await service.call(si.Request(1.0))
    assert (await service.call(si.Request(1.0))).outputs == 7
    assert batcher.statistics().running_batches == 0


async def test_cancelled_error_in_function_fails_its_batch(loop):
    """A `CancelledError` that a function raises fails only its own batch, with a `BackendError`."""

    def gives_up(x):
        raise asyncio.CancelledError

    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    predict = batcher.wrap(gives_up)
    with pytest.raises(si.BackendError, match="CancelledError"):
        await predict(1.0)
    assert reported == []
    assert batcher.statistics().failed == 1


async def test_batch_abandoned_before_it_starts_frees_worker(loop):
    """A batch frees its worker if its only caller's deadline passes in the loop iteration that releases the batch."""
    gate = loop.create_future()

    async def infer_held(batch):
        await gate
        loop.now_ns += 80_000_000  # blocks the loop until after the other deadline
        return [1.0]

    class Held(ScriptedBackend):
        async def infer(self, batch):
            return await infer_held(batch) if batch.rows[0].inputs == "held" else [2.0]

    batcher = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2, stack=False, clock=loop.clock)
    service = batcher.wrap(Held())
    held = asyncio.ensure_future(service.call(si.Request("held")))
    await asyncio.sleep(0.001)
    late = service.submit(si.Request("late"), "late", loop.now_ns + 1_000_000, 0).future
    gate.set_result(None)
    with pytest.raises(si.DeadlineExceeded):
        await late
    assert (await held).outputs == 1.0
    await asyncio.sleep(0.001)
    s = batcher.statistics()
    assert (s.running_batches, s.abandoned_batches, service._dispatcher.free) == (0, 1, 2)


async def test_no_timer_is_left_after_timely_responses(loop):
    """No timer is left after all responses have arrived before their deadlines."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=5.0, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(duration_s=0.010))
    await settle(*(service.call(si.Request(float(i))) for i in range(6)))
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []
    assert batcher.statistics().succeeded == 6


async def test_clock_is_read_again_for_each_batch(loop):
    """The clock is read again for each batch of one dispatch."""

    class Slow(ScriptedBackend):
        def infer(self, batch) -> Awaitable:  # the part before the first await blocks the loop
            loop.now_ns += 10_000_000
            return super().infer(batch)

    service = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2, clock=loop.clock).wrap(Slow())
    first, second = await settle(*(service.call(si.Request(float(i))) for i in range(2)))
    assert first.timings.queued_s == 0.0
    assert second.timings.queued_s == 0.01


async def test_assembly_ends_when_the_backend_reads_inputs(loop):
    class Late(ScriptedBackend):
        async def infer(self, batch):
            await asyncio.sleep(0.004)
            return await super().infer(batch)

    service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(Late(duration_s=0.01))
    timings = (await service.call(si.Request(1.0))).timings
    assert (timings.assembled_s, timings.inferred_s) == (pytest.approx(0.004), pytest.approx(0.010))


async def test_caller_leaving_as_batch_fails_is_cancelled(loop):
    """A caller that leaves in the loop iteration in which its batch fails is counted as cancelled."""
    gate = loop.create_future()

    async def held(x):
        await gate

    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    predict = batcher.wrap(held)
    calls = [asyncio.ensure_future(predict(x)) for x in (1.0, 2.0)]
    await asyncio.sleep(0.01)
    gate.set_exception(ZeroDivisionError())
    calls[0].cancel()
    first, second = await settle(*calls)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, si.BackendError)
    s = batcher.statistics()
    assert (s.cancelled, s.failed) == (1, 1)


async def test_abandoned_batches_teach_nothing(loop):
    """A batch that no caller waits for is counted as abandoned, and its duration is not learned."""
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(backend)
    ticket = service.submit(si.Request(1.0), 1.0, None, 0)
    loop.call_soon(service.abandon, ticket)  # after the dispatch, before the task's first step
    await asyncio.sleep(0.01)
    s = batcher.statistics()
    assert (s.abandoned_batches, s.cancelled, s.batches, backend.batches) == (1, 1, 1, [])
    assert s.batch_s == 0.0


async def test_timer_that_fires_early_counts_as_due(loop):
    """When a timer fires early, the instant that it was set for counts as reached.

    Event loops fire early by up to their resolution; here the clock is 1 µs before the deadline when the timer fires.
    """

    def clock():
        return loop.now_ns - (1000 if loop.now_ns >= 50_000_000 else 0)

    service = si.AdaptiveBatcher(max_batch_size=1, clock=clock).wrap(ScriptedBackend(HANG))
    with pytest.raises(si.DeadlineExceeded):
        await service.call(si.Request(1.0, deadline_ns=50_000_000))
    assert loop.now_ns == 50_000_000


async def test_policy_observes_a_sample_of_short_batches(loop, monkeypatch):
    """Of many short batches the policy observes two for each that it learns, and expects their mean duration.

    The batches take 150 and 50 µs alternately, so the mean is 100 µs.
    """
    told = []
    observe = Lookahead.observe
    monkeypatch.setattr(Lookahead, "observe", lambda *of: (told.append(of), observe(*of)))
    durations_ns = itertools.chain([100_000] * 17, itertools.cycle([150_000, 50_000]))

    def model(rows):
        loop.now_ns += next(durations_ns)
        return rows

    batcher = si.AdaptiveBatcher(max_batch_size=4, stack=False, clock=loop.clock)
    predict = batcher.wrap(model)
    for _ in range(17 + 1600):
        await predict(1.0)

    # 1,600 batches take ten intervals of 16 ms
    assert 17 + 9 <= batcher.service_time.observations <= 17 + 11
    assert len(told) <= 17 + 2 * 11 + 1
    assert batcher.service_time.expected_ns(4)[1] == pytest.approx(100_000, rel=0.1)


def test_drain_on_closed_loop_does_not_block_the_next():
    """A drain that was left on a closed loop does not affect the next loop."""
    backend = ScriptedBackend(duration_s=0.01)
    service = si.AdaptiveBatcher(max_batch_size=4).wrap(backend)
    tasks = []

    async def leave():
        tasks.append(asyncio.ensure_future(service.call(si.Request(1.0))))
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(service.stop()))
        await asyncio.sleep(0)

    first = asyncio.new_event_loop()
    first.run_until_complete(leave())
    for task in tasks:
        task._log_destroy_pending = False
    first.close()

    async def again():
        await service.start()
        async with asyncio.timeout(5):
            response = await service.call(si.Request(2.0))
            await service.stop()
        return response

    assert asyncio.run(again()) is not None


def fail_once(loop, monkeypatch, name):
    """Make the next call of a loop's method raise `RecursionError`, as if the caller's stack were exhausted."""

    def fail(*_args, **_kwargs):
        monkeypatch.undo()
        raise RecursionError

    monkeypatch.setattr(loop, name, fail, raising=False)


def test_caller_without_stack_delays_no_others(monkeypatch):
    """If a caller's stack is too deep to schedule the dispatch, the next request schedules it."""

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(), clock=loop.clock) as stack:
            fail_once(loop, monkeypatch, "call_soon")
            with pytest.raises(RecursionError):
                await stack(1.0)
            return await stack(2.0)

    assert run(main) == 2.0


def test_deadline_timer_is_set_after_recursion_error(monkeypatch):
    """If a caller's stack is too deep to set the timer, the next request sets it for its own deadline."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=1)
        async with si.Stack(batcher, ScriptedBackend(duration_s=9.0), clock=loop.clock) as stack:
            running = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.1)
            fail_once(loop, monkeypatch, "call_later")
            with pytest.raises(RecursionError):
                await stack(2.0, timeout_s=1.0)
            with pytest.raises(si.DeadlineExceeded):
                await stack(3.0, timeout_s=2.0)
            return loop.time(), await running

    assert run(main) == (pytest.approx(2.1), 1.0)
