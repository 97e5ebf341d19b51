"""A stop ends within its timeout, although the refresh of a cache, a thread, a process or a service hangs."""

import asyncio
import contextlib
import multiprocessing
import threading
from pathlib import Path

import pytest
from held_time import run_held, until

import streaminfer as si
from streaminfer._runtime.lifecycle import RESTART_S, keep_running, start_owned, stop_all, stop_within
from streaminfer.protocols import Node
from streaminfer.routing import Canary, Replica
from streaminfer.testing import FakeClock
from streaminfer.testing import run as run_virtually

PATIENCE_S = 30  # reached only by a test that fails
LIMIT_S = 0.2
GRACES_S = 0.5  # more than all graces after the limit together


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def none_left(tasks):
    """Wait for the tasks that were cancelled at the limit, and check that none is left."""
    left = asyncio.all_tasks() - tasks
    if left:
        await asyncio.wait(left, timeout=PATIENCE_S)
    assert asyncio.all_tasks() == tasks


def say_so_and_hang(inputs):
    Path(str(inputs[0])).touch()
    threading.Event().wait()


class HangsInRefresh:
    """Service that responds to its first call only; a stubborn one ignores its cancellation."""

    def __init__(self, *, stubborn=False):
        self.stubborn = stubborn
        self.calls = 0
        self.begun = asyncio.Event()
        self.released = asyncio.Event()

    async def call(self, request):
        self.calls += 1
        if self.calls > 1:
            self.begun.set()
            while not self.released.is_set():
                try:
                    await self.released.wait()
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
        return si.Response(request.inputs, False, "model")


def cached(service, clock):
    return si.Stack(si.EdgeCache(ttl_s=1.0, stale_s=100.0, clock=clock), service)


async def let_refresh(stack, service, clock):
    """Let the cache refresh an entry in the background."""
    assert await stack(1.0) == 1.0
    clock.advance(2.0)
    assert await stack(1.0) == 1.0
    await service.begun.wait()


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("stubborn", [False, True], ids=["cancellable", "stubborn"])
def test_stop_with_a_hung_refresh(drain, stubborn):
    """A stop ends at its timeout although a refresh hangs; if the refresh can be cancelled, no task is left."""

    async def main(loop):
        tasks = asyncio.all_tasks()
        service = HangsInRefresh(stubborn=stubborn)
        clock = FakeClock()
        stack = cached(service, clock)
        await stack.start()
        await let_refresh(stack, service, clock)

        stopping = asyncio.create_task(stack.stop(drain=drain, timeout_s=LIMIT_S))
        await loop.pass_time(LIMIT_S + GRACES_S)

        await stopping
        assert repr(stack).startswith("<Stack, stopped")
        if not stubborn:
            await none_left(tasks)
        service.released.set()

    run_held(main)


@pytest.mark.parametrize("drain", [True, False])
def test_stop_with_everything_hung_at_once(drain, tmp_path):
    """A stop ends at its one timeout although a thread in a batcher, a process and a refresh hang at once."""
    released = threading.Event()
    begun = threading.Semaphore(0)

    def hang(inputs):
        begun.release()
        assert released.wait(PATIENCE_S)
        return inputs

    async def main(loop):
        tasks = asyncio.all_tasks()
        service, clock = HangsInRefresh(), FakeClock()
        inner = {
            "refresh": cached(service, clock),
            "thread": si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(hang)),
            "process": si.Stack(si.CpuBackend(say_so_and_hang, executor="process")),
        }
        outer = si.Stack(si.Replicas(*(Replica(name, stack) for name, stack in inner.items())))
        await outer.start()
        (process,) = multiprocessing.active_children()
        await let_refresh(inner["refresh"], service, clock)
        inputs = {"thread": 1.0, "process": str(tmp_path / "begun")}
        calls = [asyncio.create_task(inner[name](one)) for name, one in inputs.items()]
        assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE_S)
        await until((tmp_path / "begun").exists)

        stopping = asyncio.create_task(outer.stop(drain=drain, timeout_s=LIMIT_S))
        await loop.pass_time(LIMIT_S + GRACES_S)

        await stopping
        for call in calls:
            with pytest.raises((si.Closed, si.BackendError)):
                await call
        assert [stack.ready for stack in inner.values()] == [False] * 3
        await until(lambda: process not in multiprocessing.active_children())  # killed, and not awaited after the limit
        await none_left(tasks)

    try:
        run_held(main)
    finally:
        released.set()


class FailsToStop:
    """Service whose stop raises an error."""

    def __init__(self, error):
        self.error = error

    async def call(self, request):
        return si.Response(request.inputs)

    async def stop(self, *, drain):
        raise self.error


def test_stop_with_several_failures(caplog):
    """A stop raises the first failure and logs the others with their tracebacks."""

    async def main():
        router = si.FallbackRouter(
            si.Route("a", FailsToStop(OSError("first"))), si.Route("b", FailsToStop(ValueError("second")))
        )
        async with si.Stack(router) as stack:
            await stack(1.0)

    with pytest.raises(OSError, match="first"):
        run(main())

    (record,) = caplog.records
    assert record.message == "another part failed too: ValueError: second"
    assert record.exc_info[1].args == ("second",)


class NeverStops:
    """Service whose stop ends only when it is cancelled."""

    async def call(self, request):
        return si.Response(request.inputs)

    async def stop(self, *, drain):
        await asyncio.Event().wait()


def test_inner_stops_have_ended_after_timeout():
    """When a stop ends at its timeout, the inner stops that it cancelled have ended.

    No task of the stop is left, so the stack can be started again.
    """

    async def main(loop):
        canary = Canary(si.Stack(NeverStops()), si.Stack(NeverStops()), share=0.5)
        stack = si.Stack(si.Replicas(Replica("a", si.Stack(canary))), clock=loop.clock)
        await stack.start()

        await stack.stop(timeout_s=0.01)

        assert loop.time() <= 0.51
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await stack.start()
        await stack.stop(timeout_s=0.01)

    run_virtually(main)


class StopsAtOnce:
    """Backend with a resource that only its stop frees."""

    holds = True

    async def infer(self, batch):
        return [row.inputs for row in batch.rows]

    async def stop(self, *, drain):
        self.holds = False


@pytest.mark.parametrize(
    "layers", [lambda it: it, lambda it: si.Replicas(Replica("a", si.Stack(it)))], ids=["backend", "replicas"]
)
@pytest.mark.parametrize("turns", range(1, 16))
def test_stop_cancelled_with_all_tasks_stops_backend(layers, turns):
    """A stop that is cancelled together with all tasks of its loop still stops the backend.

    A loop cancels all tasks when it ends; the task that stops a part may not have begun then.
    """
    backend = StopsAtOnce()

    async def main(_loop):
        stack = si.Stack(layers(backend))
        await stack.start()
        stopping = asyncio.ensure_future(stack.stop(drain=False, timeout_s=1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait({stopping})

    run_virtually(main)

    assert not backend.holds


class Odd(BaseException):
    """An exception that ``except Exception`` does not catch, such as that of ``pytest.fail``."""


@pytest.mark.parametrize("error", [Odd, ValueError])
async def test_failed_work_restarts_and_is_logged_once(loop, error, caplog):
    """Work that fails begins again after a pause, and the failure is logged once."""
    began_s = []

    async def work():
        began_s.append(loop.time())
        raise error("no more")

    task = keep_running(work, "the work", "streaminfer")
    await asyncio.sleep(2.5 * RESTART_S)
    task.cancel()

    assert [at_s - began_s[0] for at_s in began_s] == pytest.approx([0.0, RESTART_S, 2 * RESTART_S])
    assert ["the work failed: " in record.getMessage() for record in caplog.records] == [True]


async def test_work_that_is_done_is_not_begun_again(loop):
    began = []

    async def work():
        began.append(loop.time())

    await keep_running(work, "the work", "streaminfer")

    assert len(began) == 1


async def test_work_that_fails_where_it_is_cancelled_ends(loop):
    async def work():
        try:
            await asyncio.sleep(1.0)
        finally:
            raise Odd

    task = keep_running(work, "the work", "streaminfer")
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(Odd):
        await task

    assert loop.time() == pytest.approx(0.5)


class StopsByFuture(Node):
    """Part whose stop is a plain function that returns a future."""

    stopped = False

    def stop(self, *, drain=True):
        async def end():
            self.stopped = True

        return asyncio.ensure_future(end())


def test_stop_with_a_limit_awaits_any_awaitable():
    """The stop of a part may return a future, with a limit as without one."""

    async def main():
        part = StopsByFuture()
        await start_owned(main, part)
        with stop_within(LIMIT_S):
            await stop_all(main, [part], drain=True)
        assert part.stopped

    run(main())
