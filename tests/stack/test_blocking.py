"""Synchronous callers of a stack whose real event loop runs in a thread."""

import asyncio
import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer.testing import HANG, ScriptedBackend


def stack_of(backend, **options):
    return si.Stack(si.Telemetry("t"), si.AdaptiveBatcher(max_batch_size=64, **options), backend)


def test_answers_and_statistics():
    with stack_of(si.CpuBackend(lambda x: x * 2)).blocking() as infer:
        assert infer(3.0) == 6.0
        assert infer.call(si.Request(4.0)).outputs == 8.0
        assert infer.statistics()["Telemetry"].succeeded == 2
        assert "blocking <Stack, running" in repr(infer)
    assert infer.statistics()["Telemetry"].succeeded == 2


def test_calls_of_many_threads_share_batches():
    """The calls of sixteen threads while the worker is busy become one batch."""
    release, entered = threading.Event(), threading.Event()

    def held(x):
        entered.set()
        assert release.wait(60)
        return x

    stack = stack_of(si.CpuBackend(held))
    with stack.blocking() as infer, ThreadPoolExecutor(17) as threads:
        first = threads.submit(infer, -1.0)
        assert entered.wait(60)
        calls = [threads.submit(infer, float(i)) for i in range(16)]
        while infer.statistics()["AdaptiveBatcher"].queued < 16:
            pass
        release.set()
        assert [call.result(60) for call in calls] == [float(i) for i in range(16)]
        assert first.result(60) == -1.0
        assert infer.statistics()["AdaptiveBatcher"].batch_sizes == {1: 1, 16: 1}


def test_inside_a_running_loop_as_in_a_notebook():
    async def cell():
        with stack_of(si.CpuBackend(lambda x: x + 1)).blocking() as infer:
            return infer(1.0)

    assert asyncio.run(cell()) == 2.0


def test_blocking_calls_raise_the_original_errors():
    """A blocking call raises the same errors as an asynchronous call."""
    with stack_of(ScriptedBackend(HANG)).blocking() as infer:
        with pytest.raises(si.DeadlineExceeded):
            infer(1.0, timeout_s=0.01)
        with pytest.raises(si.InvalidInput, match="priority"):
            infer(1.0, priority="high")


def test_blocking_stack_is_closed_outside_its_block():
    """Outside its block a blocking stack is closed, and the block can be entered again."""
    blocking = stack_of(si.CpuBackend(lambda x: x)).blocking()
    with pytest.raises(si.Closed):
        blocking(1.0)
    with blocking as infer:
        assert infer(1.0) == 1.0
        with pytest.raises(RuntimeError, match="runs already"):
            blocking.__enter__()
    with pytest.raises(si.Closed):
        blocking(1.0)
    with pytest.raises(RuntimeError, match="does not run"):
        blocking.__exit__(None, None, None)
    with blocking as infer:
        assert infer(2.0) == 2.0


def test_exit_of_the_block_completes_calls_in_flight():
    release, entered = threading.Event(), threading.Event()

    def held(x):
        entered.set()
        assert release.wait(60)
        return x

    with ThreadPoolExecutor(1) as threads:
        with stack_of(si.CpuBackend(held)).blocking() as infer:
            call = threads.submit(infer, 5.0)
            assert entered.wait(60)
            release.set()
        assert call.result(60) == 5.0


def test_exception_in_the_block_ends_calls_in_flight():
    """An exception that leaves the block ends the calls in flight with `Closed`."""
    backend = ScriptedBackend(HANG)
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(ZeroDivisionError), stack_of(backend).blocking() as infer:
            call = threads.submit(infer, 5.0)
            while not backend.running:
                pass
            raise ZeroDivisionError
        with pytest.raises(si.Closed):
            call.result(60)
    assert backend.running == 0


def test_a_call_that_crosses_the_end_never_hangs():
    """If threads call without pause while the block ends, each call returns its response or raises `Closed`."""
    for _ in range(20):
        outcomes = []

        def hammer(infer, outcomes=outcomes):
            while True:
                try:
                    infer(1.0)
                except si.Closed:
                    outcomes.append("closed")
                    return

        with stack_of(si.CpuBackend(lambda x: x, executor="inline")).blocking() as infer:
            threads = [threading.Thread(target=hammer, args=(infer,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            infer(2.0)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert outcomes == ["closed"] * 4


def test_failed_start_is_raised_and_thread_joined():
    """A start that fails raises its error, and its thread is joined."""

    class Broken(ScriptedBackend):
        async def start(self):
            raise OSError("no model")

    with pytest.raises(OSError, match="no model"), stack_of(Broken()).blocking():
        pass
    assert "streaminfer-blocking" not in [thread.name for thread in threading.enumerate()]


def test_call_as_failed_start_ends_gets_closed(monkeypatch):
    """A call while a failed start ends gets `Closed` and does not reach the closed loop.

    The loop is closed a moment before its thread ends, and the call comes in that moment.
    """

    class Broken(ScriptedBackend):
        async def start(self):
            raise OSError("no device")

    infer = stack_of(Broken()).blocking()
    errors = []

    def run_and_call(coroutine):
        try:
            original(coroutine)
        finally:
            with ThreadPoolExecutor(1) as threads:
                errors.append(threads.submit(infer, 1.0).exception())

    original = asyncio.run
    monkeypatch.setattr(asyncio, "run", run_and_call)
    with pytest.raises(OSError, match="no device"):
        infer.start()
    assert [type(error) for error in errors] == [si.Closed]


def test_call_from_its_own_loop_is_error():
    """A call from the loop of the stack would wait for itself, so it is an error."""
    holder = {}

    def reenter(x):
        with pytest.raises(RuntimeError, match="wait for itself"):
            holder["infer"](1.0)
        return x

    with stack_of(si.CpuBackend(reenter, executor="inline")).blocking() as infer:
        holder["infer"] = infer
        assert infer(1.0) == 1.0


def test_an_interrupted_call_frees_its_place(monkeypatch):
    import concurrent.futures

    backend = ScriptedBackend(HANG)
    with stack_of(backend).blocking() as infer:

        def interrupted(self, timeout=None):
            while not backend.running:
                pass
            raise KeyboardInterrupt

        monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer(1.0)
        monkeypatch.undo()
        while infer.statistics()["AdaptiveBatcher"].cancelled == 0:
            pass
        assert infer(2.0) == 2.0


def test_start_and_stop_without_a_block():
    infer = stack_of(ScriptedBackend()).blocking()
    for _ in range(2):
        infer.start()
        assert infer(1.0) == 1.0
        with pytest.raises(RuntimeError, match="runs already"):
            infer.start()
        infer.stop()
        infer.stop()
        with pytest.raises(si.Closed):
            infer(1.0)


@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_tells_the_layers_whether_to_drain(drain):
    told = []

    class Backend(ScriptedBackend):
        async def stop(self, *, drain=True):
            told.append(drain)

    infer = stack_of(Backend()).blocking()
    infer.start()
    infer.stop(drain=drain)

    assert told == [drain]


def test_a_stop_leaves_a_later_start_alone():
    """A stop that returns after the stack was started again does not stop the later start."""
    infer = stack_of(ScriptedBackend()).blocking()
    infer.start()
    thread = infer._thread
    join = thread.join

    def join_and_restart():
        join()
        thread.join = join
        infer.stop()
        infer.start()

    thread.join = join_and_restart
    infer.stop()
    assert infer(1.0) == 1.0
    infer.stop()


def test_stop_from_its_own_loop_is_error():
    """A stop from the loop of the stack would wait for itself, so it is an error that changes nothing."""
    holder = {}

    def stop(x):
        with pytest.raises(RuntimeError, match="wait for itself"):
            holder["infer"].stop()
        return x

    with stack_of(si.CpuBackend(stop, executor="inline")).blocking() as infer:
        holder["infer"] = infer
        assert infer(1.0) == 1.0
        assert infer(2.0) == 2.0


def test_stop_without_drain_ends_calls_in_flight():
    infer = stack_of(ScriptedBackend(HANG)).blocking()
    infer.start()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(infer, 1.0)
        while not infer.statistics()["AdaptiveBatcher"].running:
            pass
        infer.stop(drain=False)
        with pytest.raises(si.Closed):
            answer.result()


def test_statistics_while_it_drains():
    """A stack that drains returns statistics, so a monitor gets a snapshot while the last requests complete."""
    entered, release = threading.Event(), threading.Event()

    def held(x):
        entered.set()
        release.wait()
        return x

    infer = stack_of(si.CpuBackend(held)).blocking()
    infer.start()
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(infer, 1.0)
        entered.wait()
        stopped = threads.submit(infer.stop)
        while infer.statistics().state != "stopping":
            pass
        assert infer.statistics()["AdaptiveBatcher"].running == 1
        release.set()
        assert answer.result() == 1.0
        stopped.result()
    assert infer.statistics().state == "stopped"


@pytest.mark.parametrize("how", ["stop", "block"])
def test_an_error_of_a_stop_is_raised(how):
    """The thread that stops the stack gets the error of the stop, once, and the stack is stopped then."""

    class Backend(ScriptedBackend):
        async def stop(self, *, drain=True):
            raise OSError("device busy")

    infer = stack_of(Backend()).blocking()
    with pytest.raises(OSError, match="device busy"):
        if how == "stop":
            infer.start()
            infer.stop()
        else:
            with infer:
                pass
    infer.stop()
    with pytest.raises(si.Closed):
        infer(1.0)


def test_thread_start_failure_leaves_stack_stopped(monkeypatch):
    """If its thread cannot be started, the stack stays stopped and can be started later."""

    def fail(self):
        raise RuntimeError("can't start new thread")

    infer = stack_of(ScriptedBackend()).blocking()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start"):
        patch.setattr(threading.Thread, "start", fail)
        infer.start()

    infer.stop()
    with infer:
        assert infer(1.0) == 1.0


class SlowToStart(ScriptedBackend):
    """Backend whose start does not end, unless it is ``ready``."""

    def __init__(self):
        super().__init__()
        self.starts = threading.Event()
        self.ready = self.was_cancelled = False

    async def start(self):
        self.starts.set()
        try:
            if not self.ready:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


def test_an_interrupted_start_is_cancelled(monkeypatch):
    """An interrupt cancels a long start instead of waiting for it."""
    backend = SlowToStart()
    infer = stack_of(backend).blocking()

    def interrupted(self, timeout=None):
        backend.starts.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("concurrent.futures.Future.result", interrupted)
        infer.start()

    assert backend.was_cancelled
    assert infer.statistics().state == "stopped"


def test_stop_cancels_a_start_in_progress():
    """A stop cancels a start in progress, and the thread that starts the stack gets `Closed`."""
    backend = SlowToStart()
    infer = stack_of(backend).blocking()
    with ThreadPoolExecutor(1) as threads:
        start = threads.submit(infer.start)
        backend.starts.wait()
        infer.stop()
        with pytest.raises(si.Closed, match="stopped before it had started"):
            start.result()

    assert infer.statistics().state == "stopped"


def test_a_start_that_failed_does_not_stop_a_later_one(monkeypatch):
    """A later start stays in force if it comes before the thread of the failed start continues."""
    backend = SlowToStart()
    infer = stack_of(backend).blocking()
    wait = Future.result
    waits = []

    def go_on_late(future, timeout=None):
        waits.append(future)
        if len(waits) == 1:
            backend.starts.wait()
            infer.stop()
            backend.ready = True
            infer.start()
        return wait(future, timeout)

    with monkeypatch.context() as patch, pytest.raises(si.Closed, match="stopped before it had started"):
        patch.setattr(Future, "result", go_on_late)
        infer.start()

    assert infer(1.0) == 1.0
    infer.stop()


def test_stop_waits_even_if_join_returns_early():
    """A stop waits for its thread even if `join` returns at once, as after an interrupted join."""
    infer = stack_of(ScriptedBackend()).blocking()
    infer.start()
    infer._thread.join = lambda: None

    infer.stop()

    assert infer.statistics().state == "stopped"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_stop_leaves_startable_stack():
    """A child that is forked during a stop can start the stack, or gets the error for a stack of another process.

    The main thread forks: a child of another thread would destroy the main thread's variables, and then wait forever
    for threads of PyAV that the child lacks.
    """
    reached, forked, parent = queue.SimpleQueue(), queue.SimpleQueue(), os.getpid()

    def use(infer):
        try:
            infer.start()
        except RuntimeError as error:
            return "another process" in str(error)
        return infer(1.0) == 2.0

    class Forking(type(stack_of(ScriptedBackend()).blocking())):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name in {"_thread", "_closing"} and not value and hasattr(self, "_pid") and os.getpid() == parent:
                reached.put(name)
                forked.get(timeout=30.0)

    infer = Forking(stack_of(si.CpuBackend(lambda x: x * 2)))
    infer.start()
    assert infer(2.0) == 4.0
    stopping = threading.Thread(target=infer.stop)
    stopping.start()
    for _ in range(2):
        reached.get(timeout=30.0)
        assert status_of_child(lambda: use(infer)) == 0
        forked.put(True)
    stopping.join()
