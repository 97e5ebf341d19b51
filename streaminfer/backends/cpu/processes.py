"""Worker process that runs batches with one function, driven by one thread.

Idea: each worker thread has a process of its own and talks to it over one pipe, batch out, results back. A process
that dies takes its own batch with it and nothing else (a shared pool would fail every batch in flight), and is
started again for the next one. Arrays travel outside the pickle (protocol 5): written to the pipe from where they
lie, and read into their final place.

Invariants:

* A message is read whole before it is unpickled, so that one that cannot be unpickled leaves the pipe in step.
  Where a message cannot be read or sent whole, for lack of memory, the process and its pipe end with the batch.
* The process says in shared memory that it has read a batch, before it unpickles it. So a batch that a process died
  without having begun is sent to the next one, up to three processes per batch. One that was begun fails: the function
  may have had its effect, or be what ended the process.
* Processes are not forked from this one, which has threads: they come from the fork server, or are spawned where
  there is none or its socket has no place. Like every such process they import ``__main__``, which needs its
  ``if __name__ == "__main__":``.
* A process ends with its pipe, or is killed. Ctrl-C, and the SIGTERM that systemd and ``timeout`` send to every process
  of a service, are this process's to answer: it may drain.
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Self

import numpy as np

from streaminfer._internal.forking import at_fork
from streaminfer.backends.cpu.worker_error import WorkerError, text_of_failure
from streaminfer.backends.worker_pool import Worker
from streaminfer.errors import BackendError, text_of_error

__all__ = ["ProcessWorker"]

_EXIT_GRACE_S = 5.0
_MAX_PROCESSES = 3  # that may die on a batch before they begin it: a function whose import ends the process is an error
_EXIT_OF_AN_ERROR = 1  # of an interpreter that ends with a traceback
_PROTOCOL = 5  # the first with buffers outside the pickle
_SOCKET_NAME = "/listener-12345678"  # as multiprocessing names the fork server's, in its temporary folder
_SOCKET_PATH_BYTES = 103  # of the path of a Unix socket, on macOS; four more on Linux

# starting and joining look after all children of this interpreter, which multiprocessing does not lock
_lifecycle = threading.Lock()


def _fork_server_is_of_parent() -> bool:
    """Return whether the process that forked this one had started multiprocessing's fork server."""
    server = vars(forkserver._forkserver)["_forkserver_pid"]
    if server is None or sys.platform == "darwin":  # whose Python has no `waitid` before 3.13
        return False
    try:
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


_forked = _fork_server_is_of_parent()  # before this module was loaded; later forks are seen below


def _after_fork() -> None:
    global _lifecycle, _forked  # noqa: PLW0603 - the lock may be held in the parent
    _lifecycle = threading.Lock()
    _forked = True
    # only the parent can wait for its resource tracker; CPython 3.13 tries here too and prints a traceback (gh-146313)
    vars(resource_tracker._resource_tracker)["_pid"] = None


at_fork(after_in_child=_after_fork)


class ProcessWorker(Worker):
    """One process and its pipe; started at first use.

    Args:
        pickled_function: ``function(inputs)`` as pickle; the process unpickles it once.
        name: of the function, for messages.
    """

    def __init__(self, pickled_function: bytes, name: str) -> None:
        self._function = pickled_function
        self._name = name
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._has_function = False  # whether the process has imported it
        self._begun: Any = None  # shared memory: whether the process has read the batch that was sent last
        self._killed = False
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Starts the process and waits until it has imported the function.

        Raises:
            BackendError: it could not be started, or could not import the function.
        """
        self._call(None)

    def run(self, inputs: Any) -> Any:
        """What the function returns for ``inputs``, in the process.

        Raises:
            BackendError: the process died after it had begun, or several died before.
            BaseException: what the function raised, with the traceback of the process as a note.
        """
        ok, value = _unpack(self._call(_pack(inputs)))
        if not ok:
            raise value
        return value

    def close(self) -> None:
        """Ends the process and waits for it, unless a call that was killed does."""
        if self._lock.acquire(blocking=not self._killed):  # a call that starts a process may have to wait for that
            try:
                self._end()
            finally:
                self._lock.release()

    def kill(self) -> bool:
        """Kills the process, so that a call that waits for it fails; from any thread, also while it is busy."""
        self._killed = True  # before the process is read: one that starts at this moment reads it afterwards
        process = self._process
        if process is None:
            return False
        with contextlib.suppress(ValueError, AttributeError):  # it has ended, or is about to start
            process.kill()
        return True

    def forget(self) -> None:
        """In a forked process, drop the parent's worker process and start another."""
        pipe, process = self._pipe, self._process
        self._pipe = self._process = self._begun = None
        self._lock = threading.Lock()
        if process is not None:  # or the end of this interpreter would terminate it, as one of its own
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        if pipe is not None:
            pipe.close()  # this process's copy: the end of the parent's must reach the worker

    def renew(self) -> Self:
        """Another one, for the same function."""
        return type(self)(self._function, self._name)

    def _call(self, message: list[Any] | None) -> list[Any]:
        """Return the reply to a message, of the process or, as long as none has begun it, of the next one.

        Without a message only starts the process.
        """
        with self._lock:
            self._killed = False
            died_before = 0
            while True:
                begun = False
                try:
                    pipe = self._ready()
                    if message is None:
                        return []
                    self._begun.value = False
                    try:
                        return _exchange(pipe, message)
                    finally:
                        begun = self._begun.value
                except (EOFError, OSError) as error:
                    died = self._died(error)
                    died_before += 1
                    if begun or self._killed or died_before == _MAX_PROCESSES:
                        raise died from error
                except BaseException:  # such as a MemoryError: a part of a message may be left in the pipe
                    self._end()
                    raise

    def _ready(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        context = _context()
        if self._begun is None:
            self._begun = context.RawValue(ctypes.c_bool, False)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._begun), name=f"CpuBackend({self._name})", daemon=True
        )
        with _lifecycle:
            try:
                process.start()
            except AssertionError as error:
                raise BackendError(
                    f"{self._name}: a worker process could not be started: {error}, "
                    "such as workers of hypercorn and Celery; use threads there, or another server"
                ) from error
        popen = vars(process)["_popen"]
        popen.terminate = popen.kill  # multiprocessing ends daemons so, and waits for them, when the interpreter ends
        self._has_function = False
        self._process, self._pipe = process, ours  # from here on `kill` reaches it
        theirs.close()  # or the end of the process would not close the pipe
        if self._killed:
            process.kill()
        ok, value = _unpack(_exchange(ours, [self._function]))
        if not ok:
            self._end()
            raise BackendError(
                f"{self._name}: the worker process cannot import it: {text_of_failure(value)}"
            ) from value
        self._has_function = True
        return ours

    def _died(self, error: BaseException) -> BackendError:
        if self._process is None:
            return BackendError(f"{self._name}: a worker process could not be started: {error}")
        code = self._end()
        if code == _EXIT_OF_AN_ERROR and not self._has_function:
            return BackendError(
                f"{self._name}: the worker process failed before it imported the function, and printed why; "
                'a script starts such a stack under `if __name__ == "__main__":`, because its processes import it'
            )
        return BackendError(f"{self._name}: the worker process ended with exit code {code} before it responded")

    def _end(self) -> int | None:
        """Closes the pipe, which ends the process, and waits for it; returns its exit code."""
        pipe, process = self._pipe, self._process
        self._pipe = None
        if pipe is None or process is None:
            return None
        pipe.close()
        with _lifecycle:
            process.join(_EXIT_GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            code = process.exitcode
            self._process = None
            # at the interpreter's end multiprocessing waits for the process too: who comes second sees no exit code
            with contextlib.suppress(ValueError):
                process.close()
        return code


def _context() -> ForkServerContext | SpawnContext:
    # multiprocessing's fork server is a child of the process that started it, and fails in a forked one
    if not _forked and "forkserver" in multiprocessing.get_all_start_methods() and _socket_has_place():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _socket_has_place() -> bool:
    # CPython before 3.14 does not see to it where TMPDIR is a long path (gh-132124)
    return len(os.fsencode(util.get_temp_dir() + _SOCKET_NAME)) <= _SOCKET_PATH_BYTES


def _pack(value: object) -> list[Any]:
    """A value as pickle, and its buffers."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append)
    return [data, *(buffer.raw() for buffer in buffers)]


def _unpack(message: list[Any]) -> Any:
    return pickle.loads(message[0], buffers=message[1:])  # noqa: S301 - from our own process


def _exchange(pipe: Connection, message: list[Any]) -> list[Any]:
    _send(pipe, message)
    return _receive(pipe)


def _send(pipe: Connection, message: list[Any]) -> None:
    pipe.send_bytes(pickle.dumps([len(part) for part in message[1:]], _PROTOCOL))
    for part in message:
        pipe.send_bytes(part)


def _receive(pipe: Connection) -> list[Any]:
    sizes = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own process
    message: list[Any] = [pipe.recv_bytes()]
    for size in sizes:
        part = np.empty(size, np.uint8)  # unlike bytes writable, as the arrays made of it should be
        pipe.recv_bytes_into(part.data)
        message.append(part)
    return message


def _portable(error: BaseException, stand_in: type[Exception]) -> BaseException:
    """An exception that certainly arrives on the other side, with its traceback as a note.

    Args:
        error: what was raised or returned.
        stand_in: of which class it arrives where it cannot be pickled.
    """
    note = "in the worker process:\n" + "".join(traceback.format_exception(error))
    try:  # the copy has the note: a function may raise one object again and again
        copy: BaseException = pickle.loads(pickle.dumps(error, _PROTOCOL))  # noqa: S301 - made in this line
        copy.add_note(note)
    except Exception:  # noqa: BLE001 - whatever its own pickling raises, its text arrives
        copy = stand_in(text_of_error(error))
        copy.add_note(note)
    return copy


def _portable_rows(result: Any) -> Any:
    """The same for exceptions that are results of single rows, in a list or in a list among several outputs."""
    if type(result) is list:
        return [_portable(row, BackendError) if isinstance(row, BaseException) else row for row in result]
    if type(result) is tuple:
        return tuple(map(_portable_rows, result))
    if type(result) is dict:
        return {name: _portable_rows(column) for name, column in result.items()}
    return result


def _on_sigterm(*_: object) -> None:
    """Go on as long as the parent lives; ``SIG_IGN`` would be inherited by the programs that a function starts."""
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(128 + signal.SIGTERM)


def _serve(pipe: Connection, begun: Any) -> None:
    """The process: one function, then batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.signal(signal.SIGTERM, _on_sigterm)  # as above
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            message = _receive(pipe)
        except (EOFError, OSError):
            return
        begun.value = True
        try:
            if function is None:
                function = _unpack(message)
                reply = _pack((True, None))
            else:
                reply = _pack((True, _portable_rows(function(_unpack(message)))))
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            reply = _pack((False, _portable(error, WorkerError)))
        try:
            _send(pipe, reply)
        except OSError:
            return
