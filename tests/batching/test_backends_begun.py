"""Backends that report the end of a batch by a callback (`begin_infer`): batches need no task, and end as usual."""

import asyncio
import gc
import threading
import weakref

import pytest

import streaminfer as si
from streaminfer.protocols import Node, adapt

PATIENCE_S = 30.0


def double(inputs):
    """Double the inputs of a batch; one negative number fails the whole batch."""
    if min(inputs) < 0:
        raise ValueError("negative")
    return [2 * value for value in inputs]


class Gate:
    """Batch function that signals when a thread enters it and waits until the test lets it continue."""

    def __init__(self):
        self.inside, self.open = threading.Semaphore(0), threading.Event()
        self.batches = []

    def __call__(self, inputs):
        self.batches.append(list(inputs))
        self.inside.release()
        assert self.open.wait(PATIENCE_S)
        return double(inputs)


def serve(values, *around, limit=8):
    """Return the outcomes of concurrent requests, the tasks of their batches, and the backend's statistics."""
    tasks = set()

    async def main():
        loop = asyncio.get_running_loop()

        def watched(inputs):
            tasks.update(asyncio.all_tasks(loop))
            return double(inputs)

        backend = si.CpuBackend(watched)
        batcher = si.AdaptiveBatcher(max_batch_size=limit, policy="greedy", stack=False)
        async with si.Stack(batcher, *around, backend) as stack:
            tasks.clear()
            calls = [asyncio.ensure_future(stack(value)) for value in values]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            return ended, tasks - set(calls) - {asyncio.current_task()}, backend.statistics()

    return asyncio.run(main())


@pytest.mark.parametrize("around", [(), (si.CircuitBreaker,)], ids=["alone", "behind a breaker"])
def test_a_batch_in_a_thread_needs_no_task(around):
    ended, tasks, counted = serve([1.0, 2.0, 3.0], *(kind() for kind in around))
    assert ended == [2.0, 4.0, 6.0]
    assert not tasks
    assert (counted.rows, counted.errors) == (3, 0)


def test_one_bad_row_fails_alone():
    (good, bad, other), _, counted = serve([1.0, -1.0, 3.0])
    assert (good, other) == (2.0, 6.0)
    assert isinstance(bad, si.BackendError)
    assert counted.errors > 0


def test_a_breaker_counts_the_batches():
    breaker = si.CircuitBreaker(minimum_calls=2)
    ended, _, counted = serve([-1.0, -2.0, 3.0], breaker, limit=1)
    assert [type(one).__name__ for one in ended] == ["BackendError", "BackendError", "CircuitOpen"]
    assert breaker.state == "open"
    assert (counted.batches, counted.errors) == (0, 2)


def test_a_predicate_error_reaches_the_callers():
    def is_bad(_):
        raise LookupError("no such row")

    breaker = si.CircuitBreaker(failure_result=is_bad)
    (error,), _, _ = serve([1.0], breaker)
    assert isinstance(error.__cause__, LookupError)
    assert breaker.state == "closed"


def test_an_overridden_infer_is_called():
    class Tripled(si.CpuBackend):
        async def infer(self, batch):
            return [3 * value for value in batch.inputs]

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2, stack=False), Tripled(double)) as stack:
            return await stack(1.0)

    assert asyncio.run(main()) == 3.0
    assert adapt(si.CpuBackend(double)).begin_infer is not None


def test_batch_abandoned_before_its_thread_never_runs():
    """A batch whose callers leave before a thread begins it never runs."""

    async def main():
        gate = Gate()
        backend = si.CpuBackend(gate)
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_in_flight=2, policy="greedy", stack=False)
        async with si.Stack(batcher, backend) as stack:
            first = asyncio.ensure_future(stack(1.0))
            await asyncio.to_thread(gate.inside.acquire)
            second = asyncio.ensure_future(stack(2.0))
            while batcher.statistics().running < 2:
                await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            while backend.statistics().cancelled == 0:
                await asyncio.sleep(0)
            gate.open.set()
            return await first, gate.batches, backend.statistics()

    answer, batches, counted = asyncio.run(main())
    assert answer == 2.0
    assert batches == [[1.0]]
    assert (counted.batches, counted.cancelled) == (1, 1)


def test_worker_is_busy_until_cancelled_thread_is_free():
    """A worker stays busy until the thread of its cancelled batch is free."""

    async def main():
        gate = Gate()
        backend = si.CpuBackend(gate)
        batcher = si.AdaptiveBatcher(max_batch_size=1, policy="greedy", stack=False)
        async with si.Stack(batcher, backend) as stack:
            first = asyncio.ensure_future(stack(1.0))
            await asyncio.to_thread(gate.inside.acquire)
            first.cancel()
            await asyncio.wait([first])
            second = asyncio.ensure_future(stack(2.0))
            for _ in range(20):
                await asyncio.sleep(0)
            before = len(gate.batches), backend.statistics().cancelled
            gate.open.set()
            return first.cancelled(), before, await second, backend.statistics().cancelled

    assert asyncio.run(main()) == (True, (1, 0), 4.0, 1)


async def test_callers_are_told_before_thread_gets_more(loop):
    """Callers get their results before a thread gets the next batch.

    The thread would only wait for the interpreter lock, which the loop holds until the end of its iteration.
    """

    succeeded = []

    class Thread(Node):
        """Backend that ends a batch after 1 ms, and notes at its begin how many requests have succeeded."""

        async def infer(self, batch):
            raise NotImplementedError

        def begin_infer(self, batch, done):
            succeeded.append(service.statistics().succeeded)
            return loop.call_later(0.001, done, [2 * row.inputs for row in batch.rows], None)

    service = si.AdaptiveBatcher(max_batch_size=1, policy="greedy", clock=loop.clock).wrap(Thread())
    responses = await asyncio.gather(*(service.call(si.Request(value)) for value in (1.0, 2.0, 3.0)))
    assert [float(response.outputs) for response in responses] == [2.0, 4.0, 6.0]
    assert succeeded == [0, 1, 2]


async def test_abandoned_failed_batch_frees_its_worker(loop):
    """A failed batch frees its worker if its callers leave before its parts are sent.

    The task that sends the parts is not cancelled before its first step, because nothing would end the batch then.
    """
    sizes, calls = [], []

    class Thread(Node):
        """Backend that fails batches of several rows; their callers leave in the loop iteration in which they end."""

        async def infer(self, batch):
            raise NotImplementedError

        def begin_infer(self, batch, done):
            sizes.append(len(batch))
            return loop.call_later(0.001, self.end, batch, done)

        def end(self, batch, done):
            if len(batch) == 1:
                done([2 * batch.rows[0].inputs], None)
                return
            for call in calls:
                call.cancel()
            done(None, ValueError("negative"))

    batcher = si.AdaptiveBatcher(max_batch_size=2, policy="greedy", clock=loop.clock)
    service = batcher.wrap(Thread())
    calls += [asyncio.ensure_future(service.call(si.Request(value))) for value in (1.0, 2.0)]
    await asyncio.wait(calls)
    assert float((await service.call(si.Request(3.0))).outputs) == 6.0
    assert sizes == [2, 1]
    seen = batcher.statistics()
    assert (seen.cancelled, seen.succeeded, seen.running_batches, seen.split_batches) == (2, 1, 0, 0)


def test_a_stop_without_a_drain_waits_for_the_thread():
    async def main():
        gate = Gate()
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=1, policy="greedy", stack=False), si.CpuBackend(gate))
        await stack.start()
        call = asyncio.ensure_future(stack(1.0))
        await asyncio.to_thread(gate.inside.acquire)
        stopping = asyncio.ensure_future(stack.stop(drain=False))
        await asyncio.wait([call])
        for _ in range(20):
            await asyncio.sleep(0)
        early = stopping.done()
        gate.open.set()
        await stopping
        return early, call.exception()

    early, error = asyncio.run(main())
    assert not early
    assert isinstance(error, si.Closed)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_an_unreferenced_backend_is_freed_at_once(executor):
    """No reference cycle keeps a backend alive, so its threads end without the garbage collector."""
    backend = si.CpuBackend(double, executor=executor)
    dropped = weakref.ref(backend)
    gc.disable()
    try:
        del backend
        assert dropped() is None
    finally:
        gc.enable()
