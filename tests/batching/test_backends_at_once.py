"""Backends that return results at once (`infer_now`): batches need no task, and wrappers and errors work as usual."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.protocols import Node, adapt
from streaminfer.testing import VirtualLoop, run

pytestmark = pytest.mark.uncompiled


def double(inputs):
    """Double the inputs of a batch; one negative number fails the whole batch."""
    if min(inputs) < 0:
        raise ValueError("negative")
    return [2 * value for value in inputs]


def inline():
    return si.CpuBackend(double, executor="inline")


def serve(values, *around, limit=8):
    """Return the outcomes of concurrent requests, the tasks of their batches, and the backend's statistics."""
    tasks = set()

    def watched(inputs):
        tasks.update(asyncio.all_tasks())
        return double(inputs)

    async def main(loop):
        backend = si.CpuBackend(watched, executor="inline")
        batcher = si.AdaptiveBatcher(max_batch_size=limit, policy="greedy", stack=False)
        async with si.Stack(batcher, *around, backend, clock=loop.clock) as stack:
            calls = [asyncio.ensure_future(stack(value)) for value in values]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            return ended, tasks - set(calls) - {asyncio.current_task()}, backend.statistics()

    return run(main)


@pytest.mark.parametrize("around", [(), (si.CircuitBreaker,)], ids=["alone", "behind a breaker"])
def test_a_batch_of_an_inline_function_needs_no_task(around):
    ended, tasks, counted = serve([1.0, 2.0, 3.0], *(kind() for kind in around))
    assert ended == [2.0, 4.0, 6.0]
    assert not tasks
    assert (counted.rows, counted.errors) == (3, 0)


def test_one_bad_row_of_an_inline_function_fails_alone():
    (good, bad, other), _, _ = serve([1.0, -1.0, 3.0])
    assert (good, other) == (2.0, 6.0)
    assert isinstance(bad, si.BackendError)


def test_breaker_counts_batches_of_an_inline_function():
    """A circuit breaker counts the batches of an inline function."""
    breaker = si.CircuitBreaker(minimum_calls=2)
    ended, _, _ = serve([-1.0, -2.0, 3.0], breaker, limit=1)
    assert [type(one).__name__ for one in ended] == ["BackendError", "BackendError", "CircuitOpen"]
    assert breaker.state == "open"


def test_wrapper_without_infer_now_is_not_bypassed():
    """A wrapper that has no `infer_now` is not bypassed: the batch runs through it, in a task."""
    limited = si.ConcurrencyLimit(limit=1).wrap(inline())
    assert adapt(inline()).infer_now is not None
    assert adapt(limited).infer_now is None
    assert adapt(si.CpuBackend(double)).infer_now is None
    ended, tasks, _ = serve([1.0], si.ConcurrencyLimit(limit=1))
    assert ended == [2.0]
    assert len(tasks) == 1


def test_interrupt_ends_its_batch_and_frees_the_worker():
    """An interrupt in a batch function leaves the loop; callers of its batch get an error, and later batches run."""
    loop = VirtualLoop()

    def interrupt_first(inputs):
        if 1.0 in inputs:
            raise KeyboardInterrupt
        return double(inputs)

    async def main():
        batcher = si.AdaptiveBatcher(max_batch_size=2, policy="greedy", stack=False)
        async with si.Stack(batcher, si.CpuBackend(interrupt_first, executor="inline"), clock=loop.clock) as stack:
            return await asyncio.gather(*map(stack, [1.0, 2.0, 3.0]), return_exceptions=True)

    asking = loop.create_task(main())
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.shield(asking))
        *interrupted, queued = loop.run_until_complete(asking)
    finally:
        loop.close()

    assert [type(one) for one in interrupted] == [si.BackendError] * 2
    assert queued == 6.0


async def test_timings_of_a_backend_that_reads_no_inputs(loop):
    """A batch whose inputs the backend never reads counts as assembled when it begins."""

    class Echo(Node):
        async def infer(self, batch):
            raise AssertionError("expected infer_now")

        def infer_now(self, batch):
            return [row.inputs for row in batch.rows]

    async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), Echo(), clock=loop.clock) as stack:
        await asyncio.sleep(5.0)
        timings = (await stack.call(si.Request(1.0))).timings

    assert (timings.assembled_s, timings.inferred_s) == (0.0, 0.0)
