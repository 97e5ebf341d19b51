"""CpuBackend in real processes, some of which the tests kill."""

import asyncio
import gc
import importlib
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from streaminfer import errors
from streaminfer.backends import CpuBackend
from streaminfer.backends.cpu import processes as _processes
from streaminfer.backends.cpu.backend import _process_workers

PATIENCE_S = 30

FUNCTIONS = """
import os
import signal
import sys


def square_in_place(inputs):
    inputs *= inputs
    return inputs


def named(inputs):
    return [{"sum": one, "both": pair} for one, pair in zip(inputs["a"] + inputs["b"], inputs["b"])]


def pids(inputs):
    return [os.getpid()] * len(inputs)


def report_and_pause(path):
    with open(path, "w") as fifo:
        fifo.write(str(os.getpid()))
    signal.pause()


def report_and_wait(paths):
    with open(paths[0], "w") as fifo:
        fifo.write(str(os.getpid()))
    with open(paths[1]) as fifo:
        return [fifo.readline(), os.getpid()]


def leave(_inputs):
    os._exit(7)


def system_exit(_inputs):
    sys.exit("left")


def fail(_inputs):
    raise LookupError("over there")


class Stubborn(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_stubbornly(_inputs):
    raise Stubborn("one", "two")


def fail_per_row(inputs):
    return [ValueError("odd") if one % 2 else Stubborn(one, one) if one > 4 else one for one in inputs]


class Silent(Exception):
    def __str__(self):
        raise ValueError("no message")


class Stuck(Silent):
    def __reduce__(self):
        raise TypeError("not to be copied")


def fail_silently(inputs):
    raise (Silent if inputs[0] else Stuck)()


ALWAYS = ValueError("always the same")


def fail_alike(inputs):
    raise ALWAYS


def return_a_lambda(_inputs):
    return [lambda: None]


class Unreadable:
    def __reduce__(self):
        return sys.exit, ("no such thing here",)
"""


JITTED = """
import numba

@numba.njit("float64[:](float64[:])")
def add_one(inputs):
    return inputs + 1
"""

PROGRAMS = """
import signal
import subprocess
import sys


def end_one(_inputs):
    program = subprocess.Popen([sys.executable, "-c", "print(flush=True); import signal; signal.pause()"], stdout=-1)
    program.stdout.readline()
    program.terminate()
    program.stdout.close()
    return [program.wait()]
"""

UNGUARDED = """
import asyncio

from streaminfer.backends import CpuBackend


def same(inputs):
    return inputs


asyncio.run(CpuBackend(same, executor="process").start())
"""

ORPHAN = """
import asyncio
import os
import signal
import sys
from pathlib import Path

from streaminfer.backends import CpuBackend
from streaminfer.request import Batch, Request


def never_end(path):
    pipe = open(path, "w")
    print(os.getpid(), file=pipe, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    asyncio.run(CpuBackend(never_end, executor="process").infer(Batch(sys.argv[1], [Request(None)])))
"""


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Return a factory of modules that worker processes can import too."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return make


@pytest.fixture
def functions(importable):
    return importable("streaminfer_test_functions", FUNCTIONS)


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def infer(function, *batches, workers=1):
    async def main():
        backend = CpuBackend(function, executor="process", workers=workers)
        await backend.start()
        try:
            return [await backend.infer(batch) for batch in batches]
        finally:
            await backend.stop(drain=True)

    return run(main())


def test_arrays_and_mappings_round_trip(functions, batch, ramp):
    (rows,) = infer(functions.square_in_place, batch(ramp(3, 4)))
    assert np.array_equal(rows, ramp(3, 4) ** 2)
    rows[0, 0] = 5  # the caller may write to the results
    big = ramp(64, 128, 128)
    inputs = {"a": np.asfortranarray(big), "b": big[:, ::2].repeat(2, axis=1)}
    (rows,) = infer(functions.named, batch(inputs, rows=64))
    assert np.array_equal([row["sum"] for row in rows], inputs["a"] + inputs["b"])
    assert np.array_equal([row["both"] for row in rows], inputs["b"])
    (empty,) = infer(functions.square_in_place, batch(np.zeros((0, 4))))
    assert empty.shape == (0, 4)


def test_a_numba_function_answers(importable, batch):
    functions = importable("streaminfer_test_jitted", JITTED)
    (rows,) = infer(functions.add_one, batch(np.arange(3.0)))
    assert rows.tolist() == [1, 2, 3]


def test_work_runs_in_processes_that_end_with_stop(functions, batch):
    """The function runs in worker processes, and all of them have ended when `stop` returns."""

    async def main():
        backend = CpuBackend(functions.pids, executor="process", workers=2)
        await backend.start()
        children = {child.pid for child in multiprocessing.active_children()}
        assert len(children) == 2
        (pid,) = set(await backend.infer(batch([1, 2])))
        assert pid in children
        await backend.stop(drain=True)
        assert multiprocessing.active_children() == []
        for child in children:
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)

    run(main())


def test_stop_ends_an_idle_process_without_a_kill(functions, batch, monkeypatch):
    killed = []

    def kill(child):
        killed.append(child)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", kill)
    infer(functions.pids, batch([1]))
    assert killed == []


def test_killed_process_fails_batch_and_is_replaced(functions, batch, tmp_path):
    """A killed process fails only the batch that it was running, and is replaced for the next batch."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main():
        backend = CpuBackend(functions.report_and_pause, executor="process", workers=2)
        await backend.start()
        for _ in range(2):
            task = asyncio.create_task(backend.infer(batch(str(fifo), rows=3)))
            pid = int(await asyncio.to_thread(fifo.read_text))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(errors.BackendError, match="ended with exit code -9 before it responded"):
                await task
        assert backend.statistics().errors == 2
        await backend.stop(drain=True)

    run(main())


def test_killing_one_process_spares_other_batches(functions, batch, tmp_path):
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        os.mkfifo(path)

    async def main():
        backend = CpuBackend(functions.report_and_pause, executor="process", workers=2)
        tasks = [asyncio.create_task(backend.infer(batch(str(path), rows=1))) for path in paths]
        pids = [int(await asyncio.to_thread(path.read_text)) for path in paths]
        assert pids[0] != pids[1]
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(errors.BackendError, match="exit code -9"):
            await tasks[0]
        assert not tasks[1].done()
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(errors.BackendError, match="exit code -9"):
            await tasks[1]
        await backend.stop(drain=True)

    run(main())


def test_process_that_died_while_idle_is_replaced(functions, batch):
    """A process that died while idle is replaced without an error for any caller."""

    async def main():
        backend = CpuBackend(functions.pids, executor="process")
        (first,) = await backend.infer(batch([1]))
        (child,) = multiprocessing.active_children()
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(child.join)
        (second,) = await backend.infer(batch([1]))
        assert second != first
        assert backend.statistics().errors == 0
        await backend.stop(drain=True)

    run(main())


@pytest.fixture
def kill_at(monkeypatch):
    """Return ``kill_at(point, times)``, which kills the worker process when this side of the pipe reaches the point.

    At ``sent``, the process is paused while the batch is sent, so that it dies before it reads the batch.
    """

    send, receive = _processes._send, _processes._receive

    def install(point, times=1):
        left = times
        stopped = None

        def kill(child):
            nonlocal left
            left -= 1
            os.kill(child.pid, signal.SIGKILL)
            child.join()

        def scripted_send(pipe, message):
            nonlocal stopped
            is_function = b"streaminfer_test_functions" in bytes(message[0])
            if left and is_function == (point == "starting"):
                (child,) = multiprocessing.active_children()
                if point == "sent":
                    os.kill(child.pid, signal.SIGSTOP)
                    stopped = child
                else:
                    if point == "sending":
                        pipe.send_bytes(pickle.dumps([len(part) for part in message[1:]]))
                    kill(child)
            send(pipe, message)

        def scripted_receive(pipe):
            nonlocal stopped
            if stopped is not None:
                kill(stopped)
                stopped = None
            return receive(pipe)

        monkeypatch.setattr(_processes, "_send", scripted_send)
        monkeypatch.setattr(_processes, "_receive", scripted_receive)

    return install


@pytest.mark.parametrize("point", ["starting", "sending", "sent"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_batch_that_was_not_begun_is_sent_again(functions, batch, kill_at, point, times):
    """A process that dies before it has read the batch is replaced, and the batch succeeds on the new process."""
    kill_at(point, times)

    async def main():
        backend = CpuBackend(functions.square_in_place, executor="process")
        rows = await backend.infer(batch(np.arange(3.0)))
        assert rows.tolist() == [0.0, 1.0, 4.0]
        assert backend.statistics().errors == 0
        await backend.stop(drain=True)

    run(main())


@pytest.mark.parametrize("point", ["starting", "sending", "sent"])
def test_processes_that_always_die_are_an_error(functions, batch, kill_at, point):
    """The third process that dies before it begins a batch fails the batch; the next batch gets a new process."""
    kill_at(point, 3)

    async def main():
        backend = CpuBackend(functions.square_in_place, executor="process")
        with pytest.raises(errors.BackendError, match="the worker process ended with exit code -9"):
            await backend.infer(batch(np.arange(3.0)))
        assert (await backend.infer(batch(np.arange(3.0)))).tolist() == [0.0, 1.0, 4.0]
        await backend.stop(drain=True)

    run(main())


def test_a_process_that_cannot_be_started_is_an_error(functions, batch, monkeypatch):
    """The error contains the operating system's message, and the next batch tries to start a process again."""
    context = _processes._context()

    def start(_process):
        raise OSError("no more of them")

    async def main():
        backend = CpuBackend(functions.square_in_place, executor="process")
        with monkeypatch.context() as patch:
            patch.setattr(context.Process, "start", start)
            with pytest.raises(errors.BackendError, match="a worker process could not be started: no more of them"):
                await backend.infer(batch(np.arange(3.0)))
        assert (await backend.infer(batch(np.arange(3.0)))).tolist() == [0.0, 1.0, 4.0]
        await backend.stop(drain=True)

    run(main())


@pytest.mark.parametrize(("folder", "method"), [("/short", "forkserver"), ("/" + 90 * "x", "spawn")])
def test_long_tmpdir_selects_spawn_start_method(folder, method, monkeypatch):
    """Worker processes are spawned if the path of TMPDIR is too long for the fork server's socket.

    The path of a Unix socket has 107 bytes on Linux, and 103 on macOS.
    """
    monkeypatch.setattr(_processes, "_forked", False)
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", lambda: folder)
    assert _processes._context().get_start_method() == method


def test_daemonic_process_cannot_start_processes(functions, batch, monkeypatch):
    """In a daemonic process, the start fails with an error that says so.

    Python lets daemonic processes, such as the workers of hypercorn and Celery, start no processes.
    """

    async def main():
        backend = CpuBackend(functions.square_in_place, executor="process")
        with monkeypatch.context() as patch:
            patch.setitem(vars(multiprocessing.current_process())["_config"], "daemon", True)
            with pytest.raises(errors.BackendError, match=r"could not be started: daemonic processes .*hypercorn"):
                await backend.start()
        await backend.start()
        assert (await backend.infer(batch(np.arange(3.0)))).tolist() == [0.0, 1.0, 4.0]
        await backend.stop(drain=True)

    run(main())


def test_a_process_killed_by_its_owner_is_not_replaced(functions, monkeypatch):
    """A batch that a stop ends at its limit is not sent to another process."""
    (worker,) = _process_workers(functions.pids, "pids", 1)
    worker.warm()
    asked = []
    exchange = _processes._exchange

    def kill_first(pipe, message):
        asked.append(message)
        worker.kill()
        return exchange(pipe, message)

    monkeypatch.setattr(_processes, "_exchange", kill_first)
    with pytest.raises(errors.BackendError, match="exit code -9"):
        worker.run([1])
    assert len(asked) == 1
    worker.close()


def test_function_that_exits_fails_its_batch(functions, batch):
    """A function that ends its worker process fails the batch with the exit code in the message."""
    with pytest.raises(errors.BackendError, match=r"leave: the worker process ended with exit code 7"):
        infer(functions.leave, batch([1]))


def test_exceptions_arrive_with_their_traceback(functions, batch):
    """An exception that the function raises reaches the caller with the traceback of the worker process."""
    with pytest.raises(errors.BackendError, match="fail failed on a batch of 2: LookupError: over there") as caught:
        infer(functions.fail, batch([1, 2]))
    cause = caught.value.__cause__
    assert type(cause) is LookupError
    assert 'raise LookupError("over there")' in cause.__notes__[0]
    what = r"^streaminfer_test_functions\.fail_stubbornly failed on a batch of 1: Stubborn: one and two$"
    with pytest.raises(errors.BackendError, match=what) as caught:
        infer(functions.fail_stubbornly, batch([1]))
    assert str(caught.value.__cause__) == "Stubborn: one and two"
    assert 'raise Stubborn("one", "two")' in caught.value.__cause__.__notes__[0]
    with pytest.raises(errors.BackendError, match="SystemExit: left"):
        infer(functions.system_exit, batch([1]))


@pytest.mark.parametrize(("picklable", "name"), [(True, "Silent"), (False, "Stuck")])
def test_exception_with_broken_message_arrives(functions, batch, picklable, name):
    """An exception whose message cannot be shown reaches the caller, and its type is named."""
    with pytest.raises(errors.BackendError, match=rf"{name}: its message cannot be shown \(ValueError\)"):
        infer(functions.fail_silently, batch([picklable]))


def test_exception_raised_again_has_one_note(functions, batch):
    """An exception object that is raised for several batches has exactly one traceback note each time."""

    async def main():
        backend = CpuBackend(functions.fail_alike, executor="process")
        for _ in range(3):
            with pytest.raises(errors.BackendError) as caught:
                await backend.infer(batch([1]))
            assert len(caught.value.__cause__.__notes__) == 1
        await backend.stop(drain=True)

    run(main())


def test_exceptions_of_single_rows_arrive(functions, batch):
    (rows,) = infer(functions.fail_per_row, batch(np.array([2, 3, 4, 6])))
    assert (rows[0], rows[2]) == (2, 4)
    assert repr(rows[1]) == "ValueError('odd')"
    assert isinstance(rows[3], errors.BackendError)
    assert "Stubborn: 6 and 6" in str(rows[3])


def test_unpicklable_values_fail_only_their_batch(functions, batch):
    async def main():
        backend = CpuBackend(functions.return_a_lambda, executor="process")
        for inputs in ([1], [lambda: None], [functions.Unreadable()], [1]):
            with pytest.raises(errors.BackendError):
                await backend.infer(batch(inputs))
        assert backend.statistics().errors == 4
        await backend.stop(drain=True)

    run(main())


def test_an_answer_without_memory_fails_its_batch_only(functions, batch, monkeypatch):
    """If a response does not fit in memory, its batch fails, and the rest of it is not read as the next response."""
    receive = _processes._receive

    def receive_without_memory(pipe):
        monkeypatch.setattr(_processes, "_receive", receive)
        pipe.recv_bytes()
        raise MemoryError

    async def main():
        backend = CpuBackend(functions.square_in_place, executor="process")
        await backend.start()
        monkeypatch.setattr(_processes, "_receive", receive_without_memory)
        with pytest.raises(errors.BackendError, match="MemoryError"):
            await backend.infer(batch(np.arange(3.0)))
        assert (await backend.infer(batch(np.arange(2.0)))).tolist() == [0.0, 1.0]
        await backend.stop(drain=True)

    run(main())


def test_function_that_cannot_be_imported_fails_start(monkeypatch):
    """A function that the worker process cannot import fails the start."""
    module = types.ModuleType("streaminfer_test_nowhere")
    exec("def function(inputs): return inputs", module.__dict__)  # noqa: S102 - a function of a module without a file
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(
        errors.BackendError, match=r"nowhere.function: the worker process cannot import it: ModuleNotFound"
    ):
        infer(module.function)


def test_a_script_without_a_main_guard_is_an_error(tmp_path):
    """A script that starts processes without a main guard gets an error that names the guard.

    Each worker process imports the script, and cannot start processes during the import.
    """
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)

    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    *_, last = ended.stderr.splitlines()
    assert last.startswith("streaminfer.errors.BackendError: __main__.same: the worker process failed before it")
    assert 'under `if __name__ == "__main__":`' in last


def test_cancelled_batch_waits_for_its_process(functions, batch, tmp_path):
    """A cancelled batch is awaited until its worker process is free."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    complaints = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        backend = CpuBackend(functions.report_and_pause, executor="process")
        task = asyncio.create_task(backend.infer(batch(str(fifo), rows=1)))
        pid = int(await asyncio.to_thread(fifo.read_text))
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.statistics().cancelled == 1
        await backend.stop(drain=False)
        del task
        gc.collect()

    run(main())
    assert complaints == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_ignores_signals_to_process_group(functions, batch, number, tmp_path):
    """A worker process ignores signals to the whole process group, which its parent handles, idle and in a batch.

    The worker can therefore complete its batch while the parent stops gracefully.
    """
    report, release = tmp_path / "report", tmp_path / "release"
    os.mkfifo(report)
    os.mkfifo(release)

    async def main():
        backend = CpuBackend(functions.report_and_wait, executor="process")
        pids = []
        with release.open("r+b", buffering=0) as pipe:  # opening it for reading too does not wait for the worker
            for _ in range(2):
                task = asyncio.create_task(backend.infer(batch([str(report), str(release)])))
                pids.append(int(await asyncio.to_thread(report.read_text)))
                os.kill(pids[-1], number)
                pipe.write(b"released\n")
                assert await task == ["released\n", pids[-1]]
                os.kill(pids[-1], number)
        assert pids[0] == pids[1]
        await backend.stop(drain=True)

    run(main())


def test_child_programs_of_function_can_be_terminated(importable, batch):
    """Programs that the function starts can be terminated, because they do not inherit the worker's ignored signals."""
    functions = importable("streaminfer_test_programs", PROGRAMS)
    ((code,),) = infer(functions.end_one, batch([1]))
    assert code == -signal.SIGTERM


def test_orphaned_process_can_be_terminated(tmp_path):
    """A worker process that has lost its parent can be terminated while its function runs.

    Nothing else would end a function that runs forever.
    """
    script, fifo = tmp_path / "orphan.py", tmp_path / "fifo"
    script.write_text(ORPHAN)
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, script, fifo], stderr=subprocess.DEVNULL) as parent, fifo.open() as pipe:
        worker = int(pipe.readline())
        parent.kill()
        parent.wait(PATIENCE_S)
        os.kill(worker, signal.SIGTERM)
        assert select.select([pipe], [], [], PATIENCE_S)[0]
        assert pipe.read() == ""


def test_close_skips_calls_killed_while_starting(functions, monkeypatch):
    """Closing a worker does not wait for a call that was killed while its process was starting.

    The start of a process may exceed the limit of a stop, for example if a fork server imports ``__main__``.
    """
    (worker,) = _process_workers(functions.pids, "pids", 1)
    process = _processes._context().Process
    starts, goes_on = threading.Event(), threading.Event()
    start = process.start

    def start_slowly(self):
        starts.set()
        assert goes_on.wait(PATIENCE_S)
        start(self)

    monkeypatch.setattr(process, "start", start_slowly)

    def warm():
        with pytest.raises(errors.BackendError, match="exit code -9"):
            worker.warm()

    call = threading.Thread(target=warm)
    call.start()
    assert starts.wait(PATIENCE_S)
    worker.kill()
    closing = threading.Thread(target=worker.close)
    closing.start()
    closing.join(PATIENCE_S / 3)
    returned = not closing.is_alive()
    goes_on.set()
    call.join(PATIENCE_S)
    closing.join(PATIENCE_S)
    assert returned
    assert multiprocessing.active_children() == []
