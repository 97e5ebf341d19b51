"""Worker process that runs batches with one function, driven by one thread.

Idea: each worker thread has a separate process and talks to it over one pipe: a batch out, results back. If a process
dies, only its batch is affected (with a shared pool, every batch in flight would fail), and the thread starts another
process for the next batch. Arrays travel outside the pickle (protocol 5): they are written to the pipe from where they
lie, and read into their final place.

Invariants:

* A message is read whole before it is unpickled, so that the pipe stays in step if unpickling fails. If a message
  cannot be read or sent whole, for lack of memory, the process and its pipe end with the batch.
* Before the process unpickles a batch, it notes in shared memory that it has read the batch. If a process dies before
  it begins a batch, the batch goes to a new process, up to three processes per batch. A batch that was begun fails: the
  function may have had its effect, or may have ended the process.
* Processes are not forked from this process, which has threads. They come from the fork server, or are spawned if there
  is none or the path of its socket is too long. Like all such processes they import ``__main__``, which needs
  ``if __name__ == "__main__":``.
* A process ends with its pipe, or is killed. It ignores Ctrl-C, and the SIGTERM that systemd and ``timeout`` send to
  every process of a service: the parent process decides, because it may drain.
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Self

import numpy as np

from streaminfer._internal.forking import at_fork, new_lock
from streaminfer.backends.cpu.worker_error import WorkerError, text_of_failure
from streaminfer.backends.worker_pool import Worker
from streaminfer.errors import BackendError, text_of_error

__all__ = ["ProcessWorker"]

_EXIT_GRACE_S = 5.0
_MAX_PROCESSES = 3  # processes that may die before they begin a batch, such as in the function's import
_EXIT_OF_AN_ERROR = 1  # exit code of an interpreter that ends with a traceback
_PROTOCOL = 5  # the first pickle protocol with buffers outside the pickle
_SOCKET_NAME = "/listener-12345678"  # like the name of the fork server's socket, in multiprocessing's temporary folder
_SOCKET_PATH_BYTES = 103  # longest path of a Unix socket on macOS; Linux allows four more

# start and join change the list of all child processes of this interpreter, which multiprocessing does not lock
_lifecycle = new_lock()


def _fork_server_is_of_parent() -> bool:
    """Return whether the process that forked this one had started multiprocessing's fork server."""
    server = vars(forkserver._forkserver)["_forkserver_pid"]
    if server is None or sys.platform == "darwin":  # Python has no `waitid` on macOS before 3.13
        return False
    try:
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


_forked = _fork_server_is_of_parent()  # forks before this module was loaded; `_after_fork` sees later ones


def _after_fork() -> None:
    global _forked  # noqa: PLW0603 - once per process
    _forked = True
    # only the parent can wait for its resource tracker; CPython 3.13 tries here too and prints a traceback (gh-146313)
    vars(resource_tracker._resource_tracker)["_pid"] = None


at_fork(after_in_child=_after_fork)


class ProcessWorker(Worker):
    """One process and its pipe; started at first use.

    Args:
        pickled_function: ``function(inputs)`` as pickle; the process unpickles it once.
        name: the name of the function, for messages.
    """

    def __init__(self, pickled_function: bytes, name: str) -> None:
        self._function = pickled_function
        self._name = name
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._has_function = False  # whether the process has imported the function
        self._batch_read: Any = None  # shared memory: whether the process has read the latest batch
        self._killed = False
        self._lock = new_lock()

    def warm(self) -> None:
        """Start the process and wait until it has imported the function.

        Raises:
            BackendError: the process could not be started, or could not import the function.
        """
        self._call(None)

    def run(self, inputs: Any) -> Any:
        """Return the function's result for ``inputs``, computed in the process.

        Raises:
            BackendError: the process died after it had begun the batch, or several processes died before that.
            BaseException: the exception that the function raised, with the traceback of the process as a note.
        """
        ok, value = _unpack(self._call(_pack(inputs)))
        if not ok:
            raise value
        return value

    def close(self) -> None:
        """End the process and wait for it, unless a killed call that still runs does so."""
        if self._lock.acquire(blocking=not self._killed):  # may have to wait for a call that starts a process
            try:
                self._end()
            finally:
                self._lock.release()

    def kill(self) -> bool:
        """Kill the process, so that a call that waits for it fails; from any thread, also during a call."""
        self._killed = True  # set before the process is read: `_ready` checks it after it has set the process
        process = self._process
        if process is None:
            return False
        with contextlib.suppress(ValueError, AttributeError):  # the process has ended, or is about to start
            process.kill()
        return True

    def forget(self) -> None:
        """Drop the parent's worker process after a fork; the next call starts another one."""
        pipe, process = self._pipe, self._process
        self._pipe = self._process = None
        if process is not None:  # else this interpreter, when it ends, would terminate it as its child
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        if pipe is not None:
            pipe.close()  # closes only this process's copy, so that the worker notices when the parent closes the pipe

    def renew(self) -> Self:
        """Return another worker for the same function."""
        return type(self)(self._function, self._name)

    def _call(self, message: list[Any] | None) -> list[Any]:
        """Return the reply of the process; if it dies before it begins the message, that of a new process.

        Without a message, only start the process.
        """
        with self._lock:
            self._killed = False
            deaths = 0
            while True:
                batch_read = False
                try:
                    pipe = self._ready()
                    if message is None:
                        return []
                    self._batch_read.value = False
                    try:
                        return _exchange(pipe, message)
                    finally:
                        batch_read = self._batch_read.value
                except (EOFError, OSError) as error:
                    died = self._died(error)
                    deaths += 1
                    if batch_read or self._killed or deaths == _MAX_PROCESSES:
                        raise died from error
                except BaseException:  # such as a MemoryError: part of a message may be left in the pipe
                    self._end()
                    raise

    def _ready(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        context = _context()
        self._batch_read = context.RawValue(ctypes.c_bool, False)
        parent_end, child_end = context.Pipe()
        process = context.Process(
            target=_serve, args=(child_end, self._batch_read), name=f"CpuBackend({self._name})", daemon=True
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
        popen.terminate = popen.kill  # multiprocessing terminates and joins its daemons when the interpreter ends
        self._has_function = False
        self._process, self._pipe = process, parent_end  # from here on `kill` finds the process
        child_end.close()  # otherwise the pipe would stay open after the process has ended
        if self._killed:
            process.kill()
        ok, value = _unpack(_exchange(parent_end, [self._function]))
        if not ok:
            self._end()
            raise BackendError(
                f"{self._name}: the worker process cannot import it: {text_of_failure(value)}"
            ) from value
        self._has_function = True
        return parent_end

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
        """Close the pipe, which ends the process; wait for the process and return its exit code."""
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
            # at interpreter exit multiprocessing joins the process too: the later join sees no exit code
            with contextlib.suppress(ValueError):
                process.close()
        return code


def _context() -> ForkServerContext | SpawnContext:
    # multiprocessing's fork server is a child of the process that started it, and cannot be used after a fork
    if not _forked and "forkserver" in multiprocessing.get_all_start_methods() and _socket_has_place():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _socket_has_place() -> bool:
    # CPython before 3.14 does not check the length of the socket's path if TMPDIR is long (gh-132124)
    return len(os.fsencode(util.get_temp_dir() + _SOCKET_NAME)) <= _SOCKET_PATH_BYTES


def _pack(value: object) -> list[Any]:
    """Return a value as a pickle, followed by its buffers."""
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
        part = np.empty(size, np.uint8)  # writable, unlike bytes, so that the arrays made of it are writable
        pipe.recv_bytes_into(part.data)
        message.append(part)
    return message


def _portable(error: BaseException, stand_in: type[Exception]) -> BaseException:
    """Return an exception that can be sent to the other process, with its traceback as a note.

    Args:
        error: the exception that was raised or returned.
        stand_in: the class to use if the exception cannot be pickled.
    """
    note = "in the worker process:\n" + "".join(traceback.format_exception(error))
    try:  # the note is added to a copy: a function may raise the same object again and again
        copy: BaseException = pickle.loads(pickle.dumps(error, _PROTOCOL))  # noqa: S301 - made in this line
        copy.add_note(note)
    except Exception:  # noqa: BLE001 - its pickling may raise anything; its text is sent instead
        copy = stand_in(text_of_error(error))
        copy.add_note(note)
    return copy


def _portable_rows(result: Any) -> Any:
    """Make the exceptions portable that are results of rows, in a list or in lists of several outputs."""
    if type(result) is list:
        return [_portable(row, BackendError) if isinstance(row, BaseException) else row for row in result]
    if type(result) is tuple:
        return tuple(map(_portable_rows, result))
    if type(result) is dict:
        return {name: _portable_rows(column) for name, column in result.items()}
    return result


def _on_sigterm(*_: object) -> None:
    """Ignore SIGTERM while the parent lives; ``SIG_IGN`` would be inherited by programs that a function starts."""
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(128 + signal.SIGTERM)


def _serve(pipe: Connection, batch_read: Any) -> None:
    """Run the worker process: receive the function, then batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent decides
    signal.signal(signal.SIGTERM, _on_sigterm)  # as above
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            message = _receive(pipe)
        except (EOFError, OSError):
            return
        batch_read.value = True
        try:
            if function is None:
                function = _unpack(message)
                reply = _pack((True, None))
            else:
                reply = _pack((True, _portable_rows(function(_unpack(message)))))
        except BaseException as error:  # noqa: BLE001 - the parent raises the error
            reply = _pack((False, _portable(error, WorkerError)))
        try:
            _send(pipe, reply)
        except OSError:
            return
