"""Batches that hang: a stop ends within its limit, and a worker that hangs while it serves is replaced."""

import asyncio
import gc
import multiprocessing
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from held_time import run_held, until

import streaminfer as si
from streaminfer._runtime.lifecycle import KILL_GRACE_S, stop_within
from streaminfer.backends import CpuBackend, job, worker_pool
from streaminfer.backends.worker_pool import Worker
from streaminfer.backends.workers import WorkerThreads
from streaminfer.request import Batch, Request

PATIENCE_S = 30  # only ever reached by a test that fails
LIMIT_S = 0.2


class Hanging:
    """Function whose first calls block until the test releases them."""

    def __init__(self, times=1):
        self.times = times
        self.begun = threading.Semaphore(0)
        self.released = threading.Event()
        self.ended = threading.Semaphore(0)

    def __call__(self, inputs):
        self.times -= 1
        if self.times >= 0:
            self.begun.release()
            assert self.released.wait(PATIENCE_S)
            self.ended.release()
        return inputs

    async def until_begun(self):
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)

    def release(self):
        self.released.set()


@pytest.fixture
def hanging():
    hangs = Hanging()
    yield hangs
    hangs.release()


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def batch(value=1.0):
    return Batch(np.array([value]), [Request(value)])


def say_so_and_hang(inputs):
    Path(str(inputs[0])).touch()
    threading.Event().wait()


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_stop_with_a_hung_thread_keeps_its_limit(hanging, drain, batched, caplog):
    """The backend's own stop ends at the limit, so the stack does not cancel it."""

    async def main(loop):
        tasks = asyncio.all_tasks()
        layers = [si.AdaptiveBatcher(max_batch_size=1)] if batched else []
        stack = si.Stack(*layers, CpuBackend(hanging))
        await stack.start()
        call = asyncio.create_task(stack(1.0))
        await hanging.until_begun()
        stopping = asyncio.create_task(stack.stop(drain=drain, timeout_s=LIMIT_S))
        await loop.pass_time(LIMIT_S - 0.001)
        assert not stopping.done()

        await loop.pass_time(0.001 + KILL_GRACE_S)

        await stopping
        with pytest.raises(si.Closed):
            await call
        assert asyncio.all_tasks() == tasks
        assert repr(stack).startswith("<Stack, stopped")

    run_held(main)
    assert "did not stop within its time limit" not in caplog.text


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("stalls", [1, 2])
def test_stall_at_the_limit_cancels_no_stop(hanging, stalls, batched, drain, caplog):
    """A loop that stalls beyond the limit and its graces changes nothing: the hung thread's call ends with `Closed`."""

    async def main(loop):
        tasks = asyncio.all_tasks()
        layers = [si.AdaptiveBatcher(max_batch_size=1)] if batched else []
        stack = si.Stack(*layers, CpuBackend(hanging))
        await stack.start()
        call = asyncio.create_task(stack(1.0))
        await hanging.until_begun()
        stopping = asyncio.create_task(stack.stop(drain=drain, timeout_s=LIMIT_S))

        for _ in range(stalls):
            await loop.stall(60.0)
        await loop.pass_time(KILL_GRACE_S)

        await stopping
        with pytest.raises(si.Closed):
            await call
        assert asyncio.all_tasks() == tasks

    run_held(main)
    assert "did not stop within its time limit" not in caplog.text


def test_stop_cancelled_at_its_limit_ends_the_calls(hanging):
    """A stop that is cancelled at its limit ends the hung calls, and the backend can start again at once."""

    async def main(loop):
        backend = CpuBackend(hanging)
        call = asyncio.create_task(backend.infer(batch()))
        await hanging.until_begun()
        with stop_within(LIMIT_S):
            stopping = asyncio.create_task(backend.stop())
        await loop.pass_time(LIMIT_S)

        stopping.cancel()

        with pytest.raises(asyncio.CancelledError):
            await stopping
        with pytest.raises(si.Closed, match="stopped before it could answer"):
            await call
        await backend.start()
        assert list(await backend.infer(batch(2.0))) == [2.0]
        await backend.stop()

    run_held(main)


@pytest.mark.parametrize("drain", [True, False])
def test_stop_with_a_hung_process_kills_the_process(drain, tmp_path):
    """A stop kills a hung process at the limit, and waits until the process has ended."""

    async def main(loop):
        before = set(multiprocessing.active_children())
        stack = si.Stack(CpuBackend(say_so_and_hang, executor="process"))
        await stack.start()
        (process,) = set(multiprocessing.active_children()) - before
        call = asyncio.create_task(stack(str(tmp_path / "begun")))
        await until((tmp_path / "begun").exists)
        stopping = asyncio.create_task(stack.stop(drain=drain, timeout_s=LIMIT_S))

        await loop.pass_time(LIMIT_S)

        await stopping
        with pytest.raises((si.Closed, si.BackendError)):
            await call
        assert process not in multiprocessing.active_children()

    run_held(main)


def test_async_with_ends_though_a_thread_hangs(hanging, monkeypatch):
    monkeypatch.setattr(si.Stack.stop, "__kwdefaults__", {"drain": True, "timeout_s": LIMIT_S})

    async def main():
        async with si.Stack(CpuBackend(hanging)) as stack:
            call = asyncio.create_task(stack(1.0))
            await hanging.until_begun()
        with pytest.raises(si.Closed):
            await call

    run(main())


def test_stack_restarts_after_abandoned_thread(hanging):
    """A stack can start again after its stop has left a hung thread behind."""

    async def main():
        stack = si.Stack(CpuBackend(hanging))
        await stack.start()
        call = asyncio.create_task(stack(1.0))
        await hanging.until_begun()
        await stack.stop(timeout_s=0)
        with pytest.raises(si.Closed):
            await call
        async with stack:
            assert await stack(2.0) == 2.0

    run(main())


@pytest.mark.parametrize("what", ["router", "replicas", "nested"])
def test_the_limit_reaches_nested_services(hanging, what):
    async def main(loop):
        inner = si.Stack(si.AdaptiveBatcher(max_batch_size=1), CpuBackend(hanging))
        service = {
            "router": lambda: si.FallbackRouter(si.Route("a", inner)),
            "replicas": lambda: si.Replicas(si.Replica("a", inner)),
            "nested": lambda: inner,
        }[what]()
        stack = si.Stack(service)
        await stack.start()
        call = asyncio.create_task(stack(1.0))
        await hanging.until_begun()
        stopping = asyncio.create_task(stack.stop(timeout_s=LIMIT_S))

        await loop.pass_time(LIMIT_S + KILL_GRACE_S)

        await stopping
        with pytest.raises(si.StreamInferError):
            await call
        assert repr(inner).startswith("<Stack, stopped")

    run_held(main)


def test_a_layer_that_ignores_the_limit_is_abandoned(caplog):
    class Part:
        async def infer(self, batch):
            return batch.inputs

        async def stop(self, *, drain):
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

    async def main(loop):
        nonlocal released
        released = asyncio.Event()
        stack = si.Stack(Part())
        await stack.start()
        stopping = asyncio.create_task(stack.stop(timeout_s=0))
        await loop.pass_time(0.5)
        await stopping
        released.set()

    released = None
    run_held(main)
    assert "abandoned" in caplog.text


def test_threads_that_were_abandoned_are_not_joined(monkeypatch):
    """A stop does not join abandoned threads, because each join would block the event loop."""
    hangs = Hanging(times=8)
    joined = []
    join = threading.Thread.join

    def recorded(thread, timeout=None):
        joined.append(thread.name)
        join(thread, timeout)

    async def main(loop):
        backend = CpuBackend(hangs, workers=8)
        stack = si.Stack(backend)
        await stack.start()
        calls = [asyncio.create_task(stack(1.0)) for _ in range(8)]
        for _ in calls:
            await hangs.until_begun()
        monkeypatch.setattr(threading.Thread, "join", recorded)
        stopping = asyncio.create_task(stack.stop(timeout_s=0))
        await loop.pass_time(KILL_GRACE_S)
        await stopping
        assert not [name for name in joined if name.startswith("CpuBackend")]
        assert {type(error) for error in await asyncio.gather(*calls, return_exceptions=True)} == {si.Closed}

    try:
        run_held(main)
    finally:
        hangs.release()


def test_without_a_limit_a_stop_waits(hanging):
    async def main():
        stack = si.Stack(CpuBackend(hanging))
        await stack.start()
        call = asyncio.create_task(stack(1.0))
        await hanging.until_begun()
        stopping = asyncio.create_task(stack.stop(timeout_s=None))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not stopping.done()
        hanging.release()
        await stopping
        assert await call == 1.0

    run(main())


@pytest.mark.parametrize("limit", [-1, float("nan"), "1", True])
def test_a_wrong_limit_is_named(limit):
    stack = si.Stack(CpuBackend(np.negative))
    with pytest.raises((TypeError, ValueError), match="timeout_s: expected a finite number of seconds"):
        asyncio.run(stack.stop(timeout_s=limit))
    with pytest.raises((TypeError, ValueError), match="timeout_s: expected a finite number of seconds"):
        stack.blocking().stop(timeout_s=limit)


def test_a_hung_thread_is_replaced_while_serving(hanging, caplog):
    async def main():
        backend = CpuBackend(hanging, hang_grace_s=0)
        call = asyncio.create_task(backend.infer(batch()))
        await hanging.until_begun()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert list(await backend.infer(batch(2.0))) == [2.0]

        hanging.release()
        assert await asyncio.to_thread(hanging.ended.acquire, timeout=PATIENCE_S)
        assert list(await backend.infer(batch(3.0))) == [3.0]
        await backend.stop()

    run(main())
    assert caplog.text.count("another thread takes the place") == 1


def test_deadline_in_batcher_frees_the_only_worker(hanging):
    """A request's deadline in a batcher frees the only worker if its function hangs."""

    async def main(loop):
        layers = si.AdaptiveBatcher(max_batch_size=1), CpuBackend(hanging, hang_grace_s=0)
        async with si.Stack(*layers, clock=loop.clock) as stack:
            call = asyncio.create_task(stack(1.0, timeout_s=0.05))
            await hanging.until_begun()
            await loop.pass_time(0.05)
            with pytest.raises(si.DeadlineExceeded):
                await call
            assert await stack(2.0) == 2.0

    run_held(main)


def test_the_pool_keeps_its_size_and_all_threads_end():
    hangs = Hanging(times=3)

    async def main():
        backend = CpuBackend(hangs, workers=2, hang_grace_s=0)
        calls = []
        for _ in range(3):
            calls.append(asyncio.create_task(backend.infer(batch())))
            await hangs.until_begun()
            calls[-1].cancel()
            await asyncio.wait(calls)
        alive = [thread for thread in threading.enumerate() if thread.name.startswith("CpuBackend")]
        assert len(alive) == 5
        hangs.release()
        await backend.stop()
        for thread in alive:
            await asyncio.to_thread(thread.join, PATIENCE_S)
            assert not thread.is_alive()

    run(main())


def test_too_many_hung_threads_are_not_replaced(monkeypatch, caplog):
    monkeypatch.setattr(worker_pool, "MAX_HUNG_PER_WORKER", 1)
    hangs = Hanging(times=2)

    async def main():
        backend = CpuBackend(hangs, hang_grace_s=0.001)
        calls = []
        for _ in range(2):
            calls.append(asyncio.create_task(backend.infer(batch())))
            await hangs.until_begun()
            calls[-1].cancel()
            if len(calls) == 1:
                await asyncio.wait(calls)
        while "not replaced" not in caplog.text:
            await asyncio.sleep(0.001)
        assert not calls[1].done()
        hangs.release()
        await asyncio.wait(calls)
        await backend.stop()

    run(main())


def test_a_pool_that_cannot_start_leaves_no_thread(monkeypatch):
    """A start fails if the process can start no more threads, and the threads that it has already started end."""
    start = threading.Thread.start
    before = threading.active_count()

    def start_one(thread):
        if threading.active_count() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    async def main():
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", start_one)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await CpuBackend(len, workers=2).start()
        while threading.active_count() > before:
            await asyncio.sleep(0.001)

    run(main())


def test_hung_thread_is_replaced_when_one_can_start(hanging, monkeypatch):
    """A hung thread is replaced as soon as the process can start a thread again.

    While the process can start no thread, it loses neither the hung batch nor its worker.
    """
    monkeypatch.setattr(job, "_RECHECK_S", 0.001)
    refused = []

    def refuse(thread):
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    async def main(loop):
        reported = []
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        backend = CpuBackend(hanging, hang_grace_s=0.001)
        call = asyncio.create_task(backend.infer(batch()))
        await hanging.until_begun()
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            call.cancel()
            await loop.pass_time(0.001)
        await loop.pass_time(0.001)
        ended = call.done()
        hanging.release()  # before the assertions: a test that fails would otherwise hang
        assert refused
        assert ended
        assert list(await backend.infer(batch(2.0))) == [2.0]
        await backend.stop()
        assert {str(error) for error in reported} == {"can't start new thread"}

    run_held(main)


def test_a_hung_process_is_killed_and_replaced(caplog, tmp_path):
    async def main():
        backend = CpuBackend(say_so_and_hang, executor="process", hang_grace_s=0)
        await backend.start()
        for name in ("first", "second"):
            (process,) = multiprocessing.active_children()
            inputs = [str(tmp_path / name)]
            call = asyncio.create_task(backend.infer(Batch(inputs, [Request(None)])))
            await until((tmp_path / name).exists)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert process not in multiprocessing.active_children()
            await backend.start()
            await backend._threads.run_for_each(lambda worker: worker.warm())
        await backend.stop()
        assert not multiprocessing.active_children()

    run(main())
    assert caplog.text.count("its worker process was killed") == 2


def test_a_late_response_keeps_no_inputs_alive():
    hangs = Hanging()

    async def main():
        backend = CpuBackend(hangs, hang_grace_s=0)
        inputs = np.ones(3)
        gone = weakref.ref(inputs)
        call = asyncio.create_task(backend.infer(Batch(inputs, [Request(None)] * 3)))
        del inputs
        await hangs.until_begun()
        call.cancel()
        await asyncio.wait([call])
        del call
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("CpuBackend")]
        hangs.release()
        await asyncio.to_thread(threads[0].join, PATIENCE_S)
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None
        await backend.stop()

    run(main())


HANG_MODULE = """
import threading
from pathlib import Path
def hang(inputs):
    Path(inputs[0]).touch()
    threading.Event().wait()
"""


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_the_interpreter_ends_though_a_batch_hangs(executor, tmp_path):
    (tmp_path / "hang.py").write_text(HANG_MODULE)
    program = f"""
import asyncio, multiprocessing, os, sys
sys.path.insert(0, {str(tmp_path)!r})
from hang import hang
from streaminfer.backends import CpuBackend
from streaminfer.backends import worker_pool
from streaminfer.request import Batch, Request
worker_pool.EXIT_LIMIT_S = 0.1
begun = {str(tmp_path / "begun")!r}
backend = CpuBackend(hang, executor={executor!r})
async def main():
    await backend.start()
    for child in multiprocessing.active_children():
        print(child.pid, flush=True)
    task = asyncio.get_running_loop().create_task(backend.infer(Batch([begun], [Request(None)])))
    task._log_destroy_pending = False
    while not os.path.exists(begun):
        await asyncio.sleep(0.001)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for pid in done.stdout.split():
        assert not Path("/proc", pid).exists()


class Bare(Worker):
    """Worker that only counts how often it is closed."""

    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


def test_workers_close_once_despite_abandoned_thread(hanging):
    """Each worker is closed exactly once, even if the stop abandons a hung thread."""

    async def main():
        workers = [Bare(), Bare()]
        pool = WorkerThreads(workers, "pool")
        call = asyncio.create_task(pool.run(lambda _worker: hanging(1)))
        await hanging.until_begun()
        with stop_within(0):
            await pool.stop(drain=True)
        with pytest.raises(si.Closed, match="stopped before it could answer"):
            await call
        assert [worker.closed for worker in workers] == [1, 1]
        hanging.release()
        assert await asyncio.to_thread(hanging.ended.acquire, timeout=PATIENCE_S)
        assert [worker.closed for worker in workers] == [1, 1]

    run(main())
