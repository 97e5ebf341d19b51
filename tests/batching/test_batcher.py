"""`AdaptiveBatcher` in virtual time: the outcomes of requests, their instants, and the counters."""

import asyncio
import gc
import inspect
import re
import time
import typing
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend

pytestmark = pytest.mark.uncompiled


def double(x):
    return x * 2


async def settle(*awaitables):
    return await asyncio.gather(*awaitables, return_exceptions=True)


def counted(batcher):
    """Return the statistics after checking that every request is counted exactly once."""
    s = batcher.statistics()
    ends = s.succeeded + s.failed + s.deadline_exceeded + s.cancelled + sum(s.rejected.values()) + s.closed
    assert s.submitted == ends + s.queued + s.running
    return s


# -- functions ------------------------------------------------------------------------------------------------------


async def test_callers_of_one_turn_share_a_batch(loop):
    seen = []
    batcher = si.AdaptiveBatcher(max_batch_size=8, policy="greedy")
    predict = batcher.wrap(lambda x: seen.append(x.tolist()) or x * 2)
    assert await settle(*map(predict, [1.0, 2.0, 3.0])) == [2.0, 4.0, 6.0]
    assert seen == [[1.0, 2.0, 3.0]]
    s = counted(batcher)
    assert (s.batches, s.batch_sizes, s.released, s.mean_batch_size) == (1, {3: 1}, {"idle_worker": 1}, 3.0)


async def test_batches_never_exceed_max_batch_size(loop):
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy")
    predict = batcher.wrap(double)
    assert await settle(*map(predict, range(10))) == [2 * i for i in range(10)]
    assert counted(batcher).batch_sizes == {2: 1, 4: 2}
    assert counted(batcher).released == {"full": 2, "idle_worker": 1}


async def test_async_functions_and_lists(loop):
    async def batch_function(rows):
        assert type(rows) is list
        await asyncio.sleep(0.001)
        return [len(row) for row in rows]

    predict = si.AdaptiveBatcher(max_batch_size=4, stack=False).wrap(batch_function)
    assert await settle(predict("a"), predict(["x", "y"]), predict({"k": 1, "l": 2, "m": 3})) == [1, 2, 3]


async def test_callable_objects_and_methods_are_functions(loop):
    """Callable objects and bound methods are accepted as functions."""

    class Model:
        async def __call__(self, x):
            return x + 1

        def method(self, x):
            return x + 2

    assert await si.AdaptiveBatcher(max_batch_size=2).wrap(Model())(1.0) == 2.0
    assert await si.AdaptiveBatcher(max_batch_size=2).wrap(Model().method)(1.0) == 3.0


def test_wrapped_function_is_coroutine_and_keeps_name():
    """A wrapped function is a coroutine function with the name of the original."""
    predict = si.AdaptiveBatcher(max_batch_size=2).wrap(double)
    assert inspect.iscoroutinefunction(predict)
    assert predict.__name__ == "double"
    assert list(inspect.signature(predict).parameters) == ["x", "timeout_s", "priority", "stream_id", "tenant", "key"]


def test_wrapped_function_is_annotated_for_one_request():
    """The annotations of a wrapped function are `Any`, because those of the original describe a batch."""

    def lengths(x: list[str]) -> list[int]:
        return [len(text) for text in x]

    predict = si.AdaptiveBatcher(max_batch_size=2, stack=False).wrap(lengths)

    assert typing.get_type_hints(predict)["x"] is typing.Any
    assert typing.get_type_hints(predict)["return"] is typing.Any


async def test_exception_row_reaches_only_its_caller(loop):
    """An exception that a function returns as a row is raised to the caller of that row only."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, stack=False)
    predict = batcher.wrap(lambda rows: [ValueError(row) if row == "bad" else row for row in rows])
    first, bad, last = await settle(predict("a"), predict("bad"), predict("b"))
    assert (first, last) == ("a", "b")
    assert type(bad) is ValueError
    s = counted(batcher)
    assert (s.succeeded, s.failed) == (2, 1)


async def test_failing_function_fails_only_its_batch(loop):
    """If no part of a batch succeeds, each of its callers gets a `BackendError` of its own; other batches succeed."""

    def explode(x):
        if x.max() > 12.0:
            raise ZeroDivisionError("thirteen")
        return x

    batcher = si.AdaptiveBatcher(max_batch_size=2)
    predict = batcher.wrap(explode)
    results = await settle(*map(predict, [14.0, 13.0, 2.0, 3.0]))
    assert results[2:] == [2.0, 3.0]
    for error in results[:2]:
        assert type(error) is si.BackendError
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert "explode raised ZeroDivisionError: thirteen" in str(error)
    assert results[0] is not results[1]
    assert counted(batcher).failed == 2


async def test_library_errors_of_a_model_are_copied(loop):
    """If a model raises an error of this library, each caller gets a copy of it."""

    def reject(x):
        raise si.Overloaded("the model says so", retry_after_s=3.0)

    one, two = await settle(*map(si.AdaptiveBatcher(max_batch_size=2).wrap(reject), [1.0, 2.0]))
    assert type(one) is type(two) is si.Overloaded
    assert one is not two
    assert one.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([1], "expected 2 results, one per row of the batch, got 1"),
        ([1, 2, 3], "expected 2 results, one per row of the batch, got 3"),
        (np.zeros((3, 2)), "expected 2 results, one per row of the batch, got 3, an array of shape (3, 2)"),
        (np.float64(1.0), "list with one result per row (2 rows), got float64"),
        (np.array(1.0), "list with one result per row (2 rows), but the rows of what came cannot be read: TypeError"),
        (None, "list with one result per row (2 rows), got None"),
        ("ab", "list with one result per row (2 rows), got str"),
        ({"a": 1, "b": 2}, "output ['a'] must be an array with the batch axis (2 rows), got int"),
        ((x for x in range(2)), "list with one result per row (2 rows), got generator"),
    ],
)
async def test_impossible_results_fail_only_their_batch(loop, results, says):
    """Impossible results raise `BackendError` to the callers of that batch only."""
    answers = [results, [1, 2]]
    batcher = si.AdaptiveBatcher(max_batch_size=2)
    predict = batcher.wrap(lambda x: answers.pop(0))
    first, second, third, fourth = await settle(*map(predict, [1.0, 2.0, 3.0, 4.0]))
    for error in (first, second):
        assert type(error) is si.BackendError
        assert says in str(error)
    assert (third, fourth) == (1, 2)
    counted(batcher)


async def test_rows_of_different_kinds_never_share_a_batch(loop):
    shapes = []
    predict = si.AdaptiveBatcher(max_batch_size=8).wrap(lambda x: shapes.append((x.shape, str(x.dtype))) or list(x))
    rows = [np.zeros(3), np.zeros(4), np.zeros(3), np.zeros(3, np.float32), 1, 2.5]
    results = await settle(*map(predict, rows))
    assert [np.shape(result) for result in results] == [(3,), (4,), (3,), (3,), (), ()]
    assert shapes == [
        ((2, 3), "float64"), ((1, 4), "float64"), ((1, 3), "float32"), ((1,), "int64"), ((1,), "float64"),
    ]  # fmt: skip


async def test_unstackable_input_fails_before_it_is_queued(loop):
    """An input that cannot be stacked raises `InvalidInput` to its caller alone, before it is queued."""
    batcher = si.AdaptiveBatcher(max_batch_size=8)
    predict = batcher.wrap(double)
    good, bad = await settle(predict(1.0), predict(object()))
    assert good == 2.0
    assert type(bad) is si.InvalidInput
    assert counted(batcher).failed == 1


# -- deadlines ------------------------------------------------------------------------------------------------------


async def test_deadline_ends_queued_and_running_requests(loop):
    """A request ends exactly at its deadline, whether it is queued or its batch is running."""
    backend = ScriptedBackend(duration_s=1.0)
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(backend)

    async def ask(deadline_s):
        with pytest.raises(si.DeadlineExceeded) as caught:
            await service.call(si.Request(1.0, deadline_ns=round(deadline_s * 1e9)))
        assert loop.now_ns == round(deadline_s * 1e9)
        return str(caught.value)

    texts = await asyncio.gather(ask(0.050), ask(0.020), ask(0.070))
    assert "its batch was running" in texts[0]
    assert "queued" in texts[1]
    assert backend.batch_sizes[0] == 1
    s = counted(batcher)
    assert (s.deadline_exceeded, s.running, s.queued) == (3, 0, 0)


async def test_slo_is_the_default_deadline(loop):
    """`slo_s` is the deadline of requests that have none of their own."""
    predict = si.AdaptiveBatcher(max_batch_size=1, slo_s=0.05, clock=loop.clock).wrap(lambda x: asyncio.sleep(1.0, [1]))
    with pytest.raises(si.DeadlineExceeded):
        await predict(1.0)
    assert loop.now_ns == 50_000_000
    with pytest.raises(si.DeadlineExceeded):
        await predict(1.0, timeout_s=0.01)
    assert loop.now_ns == 60_000_000


async def test_request_without_deadline_waits_indefinitely(loop):
    """A request without a deadline waits as long as its batch takes."""
    predict = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock).wrap(lambda x: asyncio.sleep(3600.0, [7]))
    assert await predict(1.0) == 7
    assert loop.time() == 3600.0


async def test_deadline_passed_on_arrival_runs_nothing(loop):
    """A request whose deadline has passed on arrival raises `DeadlineExceeded` and does not run."""
    backend = ScriptedBackend()
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(backend)
    with pytest.raises(si.DeadlineExceeded, match="before arrival"):
        await service.call(si.Request(1.0, deadline_ns=loop.now_ns))
    with pytest.raises(TimeoutError):
        await si.AdaptiveBatcher(max_batch_size=1).wrap(double)(1.0, timeout_s=0)
    assert backend.batches == []
    assert counted(batcher).deadline_exceeded == 1


async def test_abandoned_batch_is_cancelled_and_frees_worker(loop):
    """A batch that no caller waits for is cancelled, and its worker is free again."""
    backend = ScriptedBackend(HANG)
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(backend)
    late = await settle(*(service.call(si.Request(1.0, deadline_ns=t)) for t in (1000, 2000)))
    assert [type(error) for error in late] == [si.DeadlineExceeded] * 2
    assert loop.now_ns == 2000
    assert (await service.call(si.Request(5.0))).outputs == 5.0
    s = counted(batcher)
    assert (s.abandoned_batches, s.running_batches, backend.running) == (1, 0, 0)
    backend._steps.append(HANG)
    late = await settle(*(service.call(si.Request(1.0, deadline_ns=3000)) for _ in range(4)))
    assert [type(error) for error in late] == [si.DeadlineExceeded] * 4
    assert counted(batcher).abandoned_batches == 2


async def test_one_timer_serves_all_deadlines(loop):
    """One loop timer serves the deadlines of all requests, and none is left when the batcher is idle."""
    backend = ScriptedBackend(duration_s=0.010)
    batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05, clock=loop.clock)
    service = batcher.wrap(backend)
    calls = [asyncio.ensure_future(service.call(si.Request(float(i)))) for i in range(32)]
    await asyncio.sleep(0.001)
    live = [handle for handle in loop._scheduled if not handle.cancelled()]
    assert len(live) == 2  # the backend's own sleep, and the timer of the batcher
    await asyncio.gather(*calls, return_exceptions=True)
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []


async def test_batch_deadline_is_the_latest_of_its_requests(loop):
    """The deadline of a batch is the latest of its requests, or none if a request has none."""
    backend = ScriptedBackend()
    service = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock).wrap(backend)
    await settle(*(service.call(si.Request(1.0, deadline_ns=t)) for t in (1000, 3000, 2000)))
    await settle(service.call(si.Request(1.0)), service.call(si.Request(1.0, deadline_ns=5000)))
    assert [batch.deadline_ns for batch in backend.batches] == [3000, None]


async def test_response_delivered_late_is_deadline_exceeded(loop):
    """A response that a blocked loop delivers past the deadline becomes `DeadlineExceeded`."""

    def slow(x):
        loop.now_ns += 80_000_000  # a function that blocks the loop
        return x

    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    predict = batcher.wrap(slow)
    late, fine = await settle(predict(1.0, timeout_s=0.05), predict(2.0, timeout_s=0.1))
    assert isinstance(late, si.DeadlineExceeded)
    assert fine == 2.0
    s = counted(batcher)
    assert (s.deadline_exceeded, s.succeeded) == (1, 1)


# -- overload and priority ------------------------------------------------------------------------------------------


async def test_full_queue_rejects_with_measured_drain_time(loop):
    """A full queue rejects a request with the measured time to drain it as `retry_after_s`."""
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=2, max_queue_size=4, clock=loop.clock)
    service = batcher.wrap(backend)
    await service.call(si.Request(0.0))  # a batch takes 0.1 s
    busy = asyncio.ensure_future(service.call(si.Request(0.0)))
    await asyncio.sleep(0.01)
    waiting = [asyncio.ensure_future(service.call(si.Request(float(i)))) for i in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(si.Overloaded, match=r"4 requests are queued already \(max_queue_size=4\)") as caught:
        await service.call(si.Request(9.0))
    assert caught.value.retry_after_s == pytest.approx(0.2)
    assert not service.admission(si.Request(9.0), loop.now_ns).ok
    assert service.admission(si.Request(9.0), loop.now_ns).retry_after_s == pytest.approx(0.2)
    assert [response.outputs for response in await asyncio.gather(busy, *waiting)] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert counted(batcher).rejected == {"queue_full": 1}


@pytest.mark.parametrize("inline", [True, False])
async def test_burst_larger_than_queue_uses_free_worker(loop, inline):
    """A burst larger than the queue goes to the free worker before the queue counts as full."""
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_queue_size=16, clock=loop.clock)
    wrapped = batcher.wrap(double if inline else backend)
    results = await settle(*(wrapped(1.0) if inline else wrapped.call(si.Request(1.0)) for _ in range(100)))
    refused = sum(isinstance(result, si.Overloaded) for result in results)
    assert refused == (0 if inline else 80)
    assert counted(batcher).succeeded == 100 - refused


async def test_retry_after_before_any_batch_completed(loop):
    """Before the first batch has completed, `retry_after_s` is the age of the running batch."""
    service = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1, clock=loop.clock).wrap(ScriptedBackend(HANG))
    calls = [asyncio.ensure_future(service.call(si.Request(0.0)))]
    await asyncio.sleep(0.5)
    calls.append(asyncio.ensure_future(service.call(si.Request(0.0))))
    await asyncio.sleep(0)
    with pytest.raises(si.Overloaded) as caught:
        await service.call(si.Request(0.0))
    assert caught.value.retry_after_s == pytest.approx(0.5)
    for call in calls:
        call.cancel()
    await settle(*calls)


async def test_urgent_requests_run_first_and_shed_others(loop):
    """Urgent requests run first, and in a full queue they shed the least urgent ones."""
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=2, clock=loop.clock)
    service = batcher.wrap(backend)
    order = []

    async def ask(name, priority):
        try:
            await service.call(si.Request(name, priority=priority))
            order.append(name)
        except si.Overloaded as error:
            order.append(f"{name} overloaded")
            assert "shed" in str(error) or priority == 5

    calls = [asyncio.ensure_future(ask("running", 0))]
    await asyncio.sleep(0.01)
    for name, priority in [("b", 5), ("c", 5), ("d", 5), ("urgent", -1), ("normal", 0)]:
        assert service.admission(si.Request(name, priority=priority), loop.now_ns).ok == (name != "d")
        calls.append(asyncio.ensure_future(ask(name, priority)))
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert order == ["d overloaded", "c overloaded", "b overloaded", "running", "urgent", "normal"]
    assert sum(counted(batcher).rejected.values()) == 3


async def test_max_in_flight_batches_run_at_once(loop):
    backend = ScriptedBackend(duration_s=0.1)
    service = si.AdaptiveBatcher(max_batch_size=2, max_in_flight=3, clock=loop.clock).wrap(backend)
    await settle(*(service.call(si.Request(float(i))) for i in range(12)))
    assert loop.now_ns == 200_000_000
    assert backend.batch_sizes == [2] * 6


async def test_batch_is_held_back_at_most_max_queue_delay(loop):
    """A batch waits for more requests at most `max_queue_delay_s`, counted from its oldest request."""
    backend = ScriptedBackend()
    batcher = si.AdaptiveBatcher(max_batch_size=3, policy="greedy", max_queue_delay_s=0.005, clock=loop.clock)
    service = batcher.wrap(backend)

    async def ask(after_s):
        await asyncio.sleep(after_s)
        await service.call(si.Request(1.0))
        return loop.now_ns

    assert await asyncio.gather(ask(0.001), ask(0.002)) == [6_000_000, 6_000_000]
    assert await asyncio.gather(ask(0.001), ask(0.002), ask(0.003)) == [9_000_000] * 3
    assert counted(batcher).released == {"max_queue_delay": 1, "full": 1}


# -- cancellation ---------------------------------------------------------------------------------------------------


async def test_cancelled_caller_frees_its_queue_place(loop):
    """A cancelled caller frees its place in the queue, and the other callers get their responses."""
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=4, max_queue_size=2, clock=loop.clock)
    service = batcher.wrap(backend)
    running = asyncio.ensure_future(service.call(si.Request(0.0)))
    await asyncio.sleep(0.01)
    gone, stays = (asyncio.ensure_future(service.call(si.Request(x))) for x in (1.0, 2.0))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    comes = asyncio.ensure_future(service.call(si.Request(3.0)))
    assert [r.outputs for r in await asyncio.gather(running, stays, comes)] == [0.0, 2.0, 3.0]
    assert backend.batch_sizes == [1, 2]
    s = counted(batcher)
    assert (s.cancelled, s.succeeded) == (1, 3)


async def test_cancellation_while_running_spares_others(loop):
    """If a caller is cancelled while its batch runs, the other callers still get their rows."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(duration_s=0.1))
    calls = [asyncio.ensure_future(service.call(si.Request(float(i)))) for i in range(3)]
    await asyncio.sleep(0.05)
    calls[1].cancel()
    results = await settle(*calls)
    assert [results[0].outputs, results[2].outputs] == [0.0, 2.0]
    assert isinstance(results[1], asyncio.CancelledError)
    assert counted(batcher).cancelled == 1


@pytest.mark.parametrize("turns", range(5))
async def test_cancelling_all_callers_frees_the_worker(loop, turns):
    """Cancelling every caller frees the worker, whichever iteration of the loop it happens in."""
    backend = ScriptedBackend(HANG, HANG)
    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    service = batcher.wrap(backend)
    calls = [asyncio.ensure_future(service.call(si.Request(1.0))) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await settle(*calls)
    await asyncio.sleep(0.01)
    s = counted(batcher)
    assert (s.cancelled, s.running_batches, backend.running) == (2 if turns else 0, 0, 0)
    backend._steps.clear()
    assert (await service.call(si.Request(4.0))).outputs == 4.0


async def test_caller_cancelled_in_the_turn_of_delivery(loop):
    """A caller that is cancelled in the loop iteration of the delivery does not affect the other responses."""
    gate = loop.create_future()

    async def held(x):
        await gate
        return x

    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    predict = batcher.wrap(held)
    calls = [asyncio.ensure_future(predict(x)) for x in (1.0, 2.0)]
    await asyncio.sleep(0.01)
    gate.set_result(None)
    calls[0].cancel()
    first, second = await settle(*calls)
    assert isinstance(first, asyncio.CancelledError)
    assert second == 2.0
    s = counted(batcher)
    assert (s.cancelled, s.succeeded) == (1, 1)


async def test_backend_cancelling_itself_is_backend_error(loop):
    """A backend that raises `CancelledError` itself gives its caller a `BackendError`."""

    async def cancels(x):
        raise asyncio.CancelledError

    batcher = si.AdaptiveBatcher(max_batch_size=4, clock=loop.clock)
    predict = batcher.wrap(cancels)
    with pytest.raises(si.BackendError, match="CancelledError"):
        await predict(1.0)
    assert counted(batcher).running_batches == 0


async def test_inputs_are_freed_when_a_request_completes(loop):
    class Image(np.ndarray):
        pass

    backend = ScriptedBackend(HANG)
    service = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock, stack=False).wrap(backend)
    running = asyncio.ensure_future(service.call(si.Request(0)))
    await asyncio.sleep(0)
    image = np.zeros(4).view(Image)
    gone = weakref.ref(image)
    call = asyncio.ensure_future(service.call(si.Request(image, deadline_ns=10**15)))
    await asyncio.sleep(0)
    del image
    call.cancel()
    await asyncio.wait([call])
    del call
    gc.collect()
    assert gone() is None
    running.cancel()
    await settle(running)


# -- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [True, False])
async def test_stop_drains_or_closes(loop, drain):
    backend = ScriptedBackend(duration_s=0.1)
    batcher = si.AdaptiveBatcher(max_batch_size=2, clock=loop.clock)
    service = batcher.wrap(backend)
    calls = [asyncio.ensure_future(service.call(si.Request(float(i)))) for i in range(5)]
    await asyncio.sleep(0.05)
    stopping = asyncio.ensure_future(batcher.stop(drain=drain))
    await asyncio.sleep(0)
    with pytest.raises(si.Closed):
        await service.call(si.Request(9.0))
    results = await settle(*calls)
    await stopping
    if drain:
        assert [result.outputs for result in results] == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert loop.now_ns == 300_000_000
    else:
        assert [type(result) for result in results] == [si.Closed] * 5
        assert loop.now_ns == 50_000_000
    s = counted(batcher)
    assert (s.queued, s.running, s.running_batches, backend.running) == (0, 0, 0, 0)
    await batcher.start()
    assert (await service.call(si.Request(7.0))).outputs == 7.0


async def test_drain_does_not_wait_for_max_queue_delay(loop):
    batcher = si.AdaptiveBatcher(max_batch_size=9, policy="greedy", max_queue_delay_s=50.0, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend())
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0.01)
    await batcher.stop(drain=True)
    assert (await call).outputs == 1.0
    assert loop.now_ns == 10_000_000


async def test_cancelled_drain_closes_remaining_requests(loop):
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(HANG))
    calls = [asyncio.ensure_future(service.call(si.Request(1.0))) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await batcher.stop(drain=True)
    assert [type(result) for result in await settle(*calls)] == [si.Closed] * 2


async def test_drain_ends_when_the_last_caller_is_cancelled(loop):
    batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(HANG))
    call = asyncio.ensure_future(service.call(si.Request(1.0)))
    await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(batcher.stop(drain=True))
    await asyncio.sleep(0.01)
    call.cancel()
    await stopping
    assert counted(batcher).cancelled == 1


# -- loops and wrapping ---------------------------------------------------------------------------------------------


def test_a_batcher_moves_to_another_loop_when_idle():
    predict = si.AdaptiveBatcher(max_batch_size=2).wrap(double)
    assert asyncio.run(predict(1.0)) == 2.0
    assert asyncio.run(predict(2.0)) == 4.0


def test_batcher_outlives_loop_with_requests_in_flight():
    """A batcher serves a new event loop after one that ended with requests in flight."""
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    predict = batcher.wrap(lambda x: asyncio.sleep(0 if x[0] else 9.0, [1]))

    async def give_up():
        call = asyncio.ensure_future(predict(0.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not call.done()

    asyncio.run(give_up())
    assert asyncio.run(predict(1.0)) == 1
    s = counted(batcher)
    assert s.running_batches == 0


def test_two_loops_at_once_are_an_error():
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    predict = batcher.wrap(lambda x: asyncio.sleep(9.0, [1]))
    first = asyncio.new_event_loop()
    call = first.create_task(predict(1.0))
    first.run_until_complete(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(predict(1.0))
    call.cancel()
    first.run_until_complete(asyncio.wait([call]))
    first.run_until_complete(asyncio.sleep(0))
    first.close()


async def test_idle_costs_nothing(loop):
    """An idle batcher does not wake its loop in an hour."""
    predict = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.01, clock=loop.clock).wrap(double)
    await asyncio.gather(*map(predict, [1.0, 2.0]))
    await asyncio.sleep(0)
    turns = 0
    select = loop._selector.select

    def counting(timeout=None):
        nonlocal turns
        turns += 1
        return select(timeout)

    loop._selector.select = counting
    await asyncio.sleep(3600.0)

    assert turns <= 2  # this sleep itself


def test_a_batcher_wraps_once():
    batcher = si.AdaptiveBatcher(max_batch_size=2)
    batcher.wrap(double)
    with pytest.raises(RuntimeError, match="wraps once"):
        batcher.wrap(double)


def test_statistics_before_wrapping_is_an_error():
    with pytest.raises(RuntimeError, match="wraps nothing yet"):
        si.AdaptiveBatcher(max_batch_size=2).statistics()


class Service:
    async def call(self, request):
        raise AssertionError


@pytest.mark.parametrize("inner", [Service(), 3, None])
def test_only_backends_and_functions_can_be_batched(inner):
    with pytest.raises(TypeError, match="inner: expected a backend"):
        si.AdaptiveBatcher(max_batch_size=2).wrap(inner)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"max_batch_size": 0}, ValueError, "max_batch_size: expected a whole number ≥ 1, got 0 (int)"),
        ({"max_batch_size": 2.5}, TypeError, "max_batch_size: expected a whole number ≥ 1, got 2.5 (float)"),
        ({"max_batch_size": True}, TypeError, "max_batch_size"),
        ({"slo_s": 0}, ValueError, "slo_s: expected a finite number of seconds > 0, got 0 (int)"),
        ({"slo_s": float("nan")}, ValueError, "slo_s"),
        ({"slo_s": "1"}, TypeError, "slo_s"),
        ({"max_queue_size": 0}, ValueError, "max_queue_size"),
        ({"max_queue_delay_s": -1.0, "policy": "greedy"}, ValueError, "max_queue_delay_s"),
        ({"max_queue_delay_s": 0.1}, ValueError, "max_queue_delay_s: expected 0 with policy='lookahead'"),
        ({"max_in_flight": 0}, ValueError, "max_in_flight"),
        ({"policy": "fastest"}, ValueError, "policy: expected one of 'lookahead', 'greedy', got 'fastest'"),
        ({"policy": None}, TypeError, "policy"),
        ({"stack": 1}, TypeError, "stack: expected True or False"),
        (
            {"preferred_sizes": 5},
            TypeError,
            "preferred_sizes: expected ascending whole numbers from 1 to max_batch_size=2",
        ),
        ({"preferred_sizes": {1, 2}}, TypeError, "preferred_sizes: expected ascending whole numbers"),
        ({"clock": 7}, TypeError, "clock: expected a callable or None"),
    ],
)
def test_bad_settings_are_named(arguments, error, says):
    with pytest.raises(error) as caught:
        si.AdaptiveBatcher(**{"max_batch_size": 2, **arguments})
    assert says in str(caught.value)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("-inf"), "soon", True])
async def test_bad_timeouts_fail_their_caller(loop, timeout_s):
    with pytest.raises(si.InvalidInput, match="timeout_s"):
        await si.AdaptiveBatcher(max_batch_size=2).wrap(double)(1.0, timeout_s=timeout_s)


@pytest.mark.parametrize("priority", [1.5, "high", None, 2**40])
async def test_bad_priorities_fail_their_caller(loop, priority):
    with pytest.raises(si.InvalidInput, match="priority"):
        await si.AdaptiveBatcher(max_batch_size=2).wrap(double)(1.0, priority=priority)


def test_repr_says_what_it_is():
    batcher = si.AdaptiveBatcher(max_batch_size=2, slo_s=0.05)
    batcher.wrap(double)
    assert repr(batcher) == (
        "<AdaptiveBatcher(max_batch_size=2, slo_s=0.05, policy='lookahead') around BatchedService(double, queued=0, running=0)>"
    )


def test_the_default_clock_is_monotonic():
    assert si.AdaptiveBatcher(max_batch_size=1).wrap(ScriptedBackend()).clock is time.monotonic_ns


def test_html_of_a_batcher_that_is_not_used_yet():
    assert si.AdaptiveBatcher(max_batch_size=2)._repr_html_() == (
        "<table><caption>batcher, not used yet</caption><tbody>"
        "<tr><th>largest batch</th><td>2</td></tr><tr><th>policy</th><td>lookahead</td></tr></tbody></table>"
    )


async def test_html_of_overloaded_batcher_has_row_per_figure(loop):
    """The HTML of an overloaded batcher has one table row per figure."""
    batcher = si.AdaptiveBatcher(max_batch_size=2, max_queue_size=4, clock=loop.clock)
    service = batcher.wrap(ScriptedBackend(duration_s=0.02))
    await settle(*(service.call(si.Request(float(number))) for number in range(1234)))

    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", batcher._repr_html_()))

    assert counted(batcher).submitted == 1234
    assert rows["submitted"] == "1,234"
    assert f"queue_full: {batcher.statistics().rejected['queue_full']:,}" in rows["rejected"]
    assert rows["mean batch size"] == "2"
    assert rows["batch"] == "20 ms"
    assert rows["released"] != "none"


async def test_a_plan_has_no_size_that_cannot_be_queued(loop):
    """The planner has no tables for batches above `max_queue_size`, so a huge `max_batch_size` costs no time."""
    for settings in ({}, {"buckets": [4, 8]}):
        batcher = si.AdaptiveBatcher(max_batch_size=10**6, max_queue_size=64, clock=loop.clock, **settings)
        predict = batcher.wrap(lambda rows: rows.sum(axis=1))
        await asyncio.gather(*(predict(np.ones(4)) for _ in range(100)), return_exceptions=True)

        assert max(batcher.statistics().batch_sizes) == 64
        assert all(len(model.durations) <= 65 for model in batcher._service._dispatcher.policy.bucket_models)
