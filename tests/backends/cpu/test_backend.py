"""CpuBackend inline and in threads."""

import asyncio
import functools
import gc
import threading

import numba
import numpy as np
import pytest

import streaminfer as si
from streaminfer import errors
from streaminfer.backends import CpuBackend
from streaminfer.request import Batch, Request

PATIENCE_S = 30


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def infer(backend, *batches):
    async def main():
        await backend.start()
        try:
            return [await backend.infer(batch) for batch in batches]
        finally:
            await backend.stop(drain=True)

    return run(main())


async def echo_later(inputs):
    await asyncio.sleep(0)
    return inputs


class AsyncCallable:
    async def __call__(self, inputs):
        return inputs


BAD_ARGUMENTS = [
    ((3,), {}, TypeError, ["fn", "a function", "3 (int)"]),
    ((abs,), {"executor": "gpu"}, ValueError, ["executor", "'thread', 'process', 'inline'", "'gpu'"]),
    ((abs,), {"executor": None}, TypeError, ["executor", "None"]),
    ((abs,), {"workers": 0}, ValueError, ["workers", "≥ 1", "0"]),
    ((abs,), {"workers": 10_001}, ValueError, ["workers", "≥ 1 and ≤ 10000", "10001"]),
    ((abs,), {"workers": 2.0}, TypeError, ["workers", "whole number", "2.0"]),
    ((abs,), {"executor": "inline", "workers": 2}, ValueError, ["workers", "1 with executor='inline'", "2"]),
    ((echo_later,), {}, TypeError, ["fn", "synchronous", "'thread' ('inline' awaits", "echo_later"]),
    ((echo_later,), {"executor": "process"}, TypeError, ["fn", "synchronous", "'process'", "echo_later"]),
    ((AsyncCallable(),), {"executor": "thread"}, TypeError, ["fn", "synchronous", "AsyncCallable"]),
    ((functools.partial(echo_later),), {}, TypeError, ["fn", "synchronous", "echo_later"]),
    ((lambda inputs: inputs,), {"executor": "process"}, TypeError, ["fn", "import by name", "<lambda>"]),
]


@pytest.mark.parametrize(("arguments", "options", "error", "parts"), BAD_ARGUMENTS)
def test_invalid_arguments_are_rejected(arguments, options, error, parts):
    with pytest.raises(error) as caught:
        CpuBackend(*arguments, **options)
    for part in parts:
        assert part in str(caught.value)


def test_repr_and_batch_axes():
    backend = CpuBackend(abs, workers=2)
    assert repr(backend) == "CpuBackend(builtins.abs, executor='thread', workers=2)"
    assert dict(backend.batch_axes) == {}
    assert "functools.partial" in repr(CpuBackend(functools.partial(np.sum, axis=1)))


@pytest.mark.parametrize("executor", ["thread", "process", "inline"])
def test_a_numpy_function_answers_in_every_executor(batch, ramp, executor):
    backend = CpuBackend(functools.partial(np.sum, axis=1), executor=executor)
    first, second = infer(backend, batch(ramp(3, 4)), batch(ramp(1, 2)))
    assert np.array_equal(first, ramp(3, 4).sum(axis=1))
    assert np.array_equal(second, [1])
    statistics = backend.statistics()
    assert (statistics.batches, statistics.rows, statistics.errors, statistics.workers) == (2, 4, 0, 1)


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_a_numba_function_answers(batch, ramp, executor):
    @numba.njit("float64[:](float32[:, ::1])", nogil=True)
    def row_sums(inputs):
        sums = np.empty(inputs.shape[0])
        for row in range(inputs.shape[0]):
            sums[row] = inputs[row].sum()
        return sums

    (rows,) = infer(CpuBackend(row_sums, executor=executor), batch(ramp(3, 4)))
    assert np.array_equal(rows, ramp(3, 4).sum(axis=1))


@pytest.mark.parametrize("function", [echo_later, AsyncCallable(), functools.partial(echo_later)])
def test_an_async_function_answers_inline(batch, function):
    (rows,) = infer(CpuBackend(function, executor="inline"), batch([1, 2]))
    assert rows == [1, 2]


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_results_are_passed_on_unchanged(batch, executor):
    rows = [1, ValueError("this row only"), {"a": 2}]
    (answer,) = infer(CpuBackend(lambda _inputs: rows, executor=executor), batch([0, 0, 0]))
    assert answer[1] is rows[1]
    assert answer == rows


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_inputs_are_read_once_where_function_runs(batch, executor):
    """The inputs of a batch are read once, in the thread that runs the function."""
    one = batch([1, 2])
    threads = []

    def where(inputs):
        threads.append(threading.current_thread())
        return inputs

    infer(CpuBackend(where, executor=executor), one)
    assert one.readers == threads
    assert (threads[0] is threading.main_thread()) == (executor == "inline")


def fail(error):
    def function(_inputs):
        raise error

    return function


def fail_later(error):
    async def function(_inputs):
        await asyncio.sleep(0)
        raise error

    return function


@pytest.mark.parametrize("make", [fail, fail_later])
@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_function_errors_become_backend_errors(batch, executor, make):
    """An exception of the function is the cause of a `BackendError`; `InvalidInput` is raised unchanged."""
    if make is fail_later and executor == "thread":
        executor = "inline"

    cause = KeyError("no such thing")
    backend = CpuBackend(make(cause), executor=executor)
    with pytest.raises(
        errors.BackendError, match=r"function failed on a batch of 2: KeyError: 'no such thing'"
    ) as caught:
        infer(backend, batch([1, 2]))
    assert caught.value.__cause__ is cause
    assert backend.statistics().errors == 1

    own = errors.InvalidInput("in its own words")
    with pytest.raises(errors.InvalidInput) as caught:
        infer(CpuBackend(make(own), executor=executor), batch([1, 2]))
    assert caught.value is own


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), KeyboardInterrupt()])
def test_exception_in_thread_does_not_end_the_loop(batch, error):
    """An exception that would end the event loop becomes a `BackendError` if a worker thread raises it."""
    with pytest.raises(errors.BackendError) as caught:
        infer(CpuBackend(fail(error)), batch([1]))
    assert caught.value.__cause__ is error


def test_a_batch_that_cannot_be_assembled_fails(batch):
    for executor in ("thread", "inline"):
        with pytest.raises(errors.BackendError, match="ValueError: cannot stack"):
            infer(CpuBackend(abs, executor=executor), batch(ValueError("cannot stack"), rows=2))


def test_cancelled_uninterruptible_batch_is_awaited(batch):
    """A cancelled batch is awaited if its function is already running and cannot be interrupted."""
    complaints = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        begun, opened = threading.Event(), threading.Event()

        def blocked(_inputs):
            begun.set()
            assert opened.wait(PATIENCE_S)
            raise ValueError("nobody waits for it")

        backend = CpuBackend(blocked)
        running = asyncio.create_task(backend.infer(batch([1])))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        waiting = batch([2])
        queued = asyncio.create_task(backend.infer(waiting))
        await asyncio.sleep(0)
        running.cancel()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued  # at once: no thread has begun it
        assert not running.done()
        opened.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert waiting.readers == []
        statistics = backend.statistics()
        assert (statistics.batches, statistics.errors, statistics.cancelled) == (0, 0, 2)
        await backend.stop()
        del running, queued
        gc.collect()

    run(main())
    assert complaints == []


@pytest.mark.parametrize(("function", "executor"), [(np.copy, "thread"), (np.copy, "inline"), (echo_later, "inline")])
def test_cancel_before_first_step_leaves_no_coroutine(function, executor, batch):
    """A task that is cancelled before its first step leaves no coroutine that was never awaited."""

    async def main():
        backend = CpuBackend(function, executor=executor)
        task = asyncio.create_task(backend.infer(batch([1])))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await backend.stop()

    run(main())
    gc.collect()  # a coroutine that was never awaited warns when it is freed, which is an error here


def test_a_cancelled_async_function_is_cancelled(batch):
    async def main():
        ended = []

        async def forever(_inputs):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

        backend = CpuBackend(forever, executor="inline")
        task = asyncio.create_task(backend.infer(batch([1])))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]
        assert backend.statistics().cancelled == 1
        await backend.stop()

    run(main())


def test_stop_waits_for_async_functions(batch):
    async def main():
        gate = asyncio.get_running_loop().create_future()

        async def gated(inputs):
            await gate
            return inputs

        backend = CpuBackend(gated, executor="inline")
        task = asyncio.create_task(backend.infer(batch([1])))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(backend.stop(drain=False))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not stopping.done()
        gate.set_result(None)
        await stopping
        assert await task == [1]

    run(main())


@pytest.mark.parametrize("executor", ["thread", "process", "inline"])
def test_stopped_means_closed_until_started_again(batch, executor):
    async def main():
        backend = CpuBackend(abs, executor=executor)
        assert (await backend.infer(batch(np.array([-1])))).tolist() == [1]
        for _ in range(2):
            await backend.stop(drain=True)
            await backend.stop(drain=False)
            with pytest.raises(errors.Closed, match=r"CpuBackend\(builtins.abs\) is stopped"):
                await backend.infer(batch(np.array([-1])))
            await backend.start()
            await backend.start()
            assert (await backend.infer(batch(np.array([-1])))).tolist() == [1]
        await backend.stop()
        assert backend.statistics().batches == 3

    run(main())


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_busy_time_is_the_functions_time(batch, executor):
    now_s = [0]

    def two_seconds(inputs):
        now_s[0] += 2
        return inputs

    backend = CpuBackend(two_seconds, executor=executor, clock=lambda: now_s[0] * 10**9)
    infer(backend, batch([1]), batch([1, 2]))
    assert backend.statistics().busy_s == 4.0


def test_busy_time_of_async_function_includes_waits(batch):
    """The busy time of an async function includes the time in which it waits."""
    now_s = [0]

    async def two_seconds(inputs):
        now_s[0] += 1
        await asyncio.sleep(0)
        now_s[0] += 1
        return inputs

    backend = CpuBackend(two_seconds, executor="inline", clock=lambda: now_s[0] * 10**9)
    infer(backend, batch([1]))
    assert backend.statistics().busy_s == 2.0


def boxes_and_scores(x):
    return x[:, :2] * 2, {"score": x.sum(axis=1)}


@pytest.mark.parametrize("executor", ["thread", "process", "inline"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_several_outputs_in_every_executor(ramp, executor, rows):
    """Each caller gets its row of a tuple and of a mapping of arrays, in the structure that the function returns."""

    async def main():
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), CpuBackend(boxes_and_scores, executor=executor))
        async with stack:
            return await asyncio.gather(*(stack(row) for row in ramp(rows, 3)))

    for row, (boxes, more) in zip(ramp(rows, 3), asyncio.run(main()), strict=True):
        assert np.array_equal(boxes, row[:2] * 2)
        assert more == {"score": row.sum()}


def test_stop_wakes_for_batch_of_another_loop():
    """A stop waits for a batch of another event loop, and ends when that batch ends.

    A backend can serve several event loops, and the end of a batch wakes the loop that stops the backend.
    """
    begun, may_end = threading.Event(), threading.Event()

    async def slow(batch):
        begun.set()
        await asyncio.to_thread(may_end.wait)
        return batch

    backend = CpuBackend(slow, executor="inline")
    other = threading.Thread(target=lambda: asyncio.run(backend.infer(Batch(np.zeros(1), [Request(0.0)]))))
    other.start()
    begun.wait()

    async def stop():
        stopping = asyncio.ensure_future(backend.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        may_end.set()
        async with asyncio.timeout(10):  # a stop that is not woken ends after 30 s
            await stopping

    asyncio.run(stop())
    other.join()
