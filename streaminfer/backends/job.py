"""One call in a worker thread, and the way back to the event loop that waits for it.

A cancelled call ends at once if no thread has begun it, else when its thread is free or replaced. What waits for one
needs no task: it is told by a callback on its loop, or awaits a future whose cancellation is that of the call.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

from streaminfer.errors import Closed

__all__ = ["Done", "Job", "JobFuture"]

Done = Callable[[Any, BaseException | None], None]
"""Told what a call returned, or what it raised."""

_RECHECK_S = 1.0
"""Seconds to the next attempt to replace the thread of a hung call."""


class Job:
    """One call in a worker thread; made on the event loop that is told of its end.

    Args:
        function: called with the worker and ``arguments``.
        arguments: further positional arguments.
        interrupt: tells a running call to end early; ``None``: it cannot.
        done: called once, on the loop, in a later turn.

    Attributes:
        leave: called before ``done``; set by the pool.
        replace: gives the worker of a hung call another thread; false if it could not, or need not. Set by the pool.
        hang_grace_s: seconds after which a cancelled call that still runs counts as hung.
    """

    leave: Callable[["Job"], None]
    replace: Callable[["Job"], bool]

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        interrupt: Callable[[], None] | None,
        done: Done,
        hang_grace_s: float = 0.0,
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._interrupt = interrupt
        self._done = done
        self.hang_grace_s = hang_grace_s
        self._loop = asyncio.get_running_loop()
        self._context = Context()  # what follows from its end belongs to no caller
        self._claim = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._interrupted: Closed | None = None
        self._abandoned: Closed | None = None
        self._watchdog: asyncio.TimerHandle | None = None  # of one that was cancelled while it ran
        self._finished = False

    def execute(self, worker: Any) -> None:
        """Run it in the worker's thread, unless it was ended before."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self._function(worker, *self._arguments)
        except BaseException as error:  # noqa: BLE001 - the event loop that waits raises it
            self._error = error
        self._tell()

    def abort(self, error: Closed) -> None:
        """End it with ``error`` if no thread has begun it, else interrupt it; from any thread."""
        if self._claim.acquire(blocking=False):
            self._error = error
            self._tell()
        elif self._interrupt is not None:
            self._interrupted = error
            self._interrupt()

    def abandon(self, error: Closed) -> None:
        """End the wait with ``error`` though a thread still runs it, whose result is dropped; from any thread."""
        self._abandoned = error
        self._tell()

    def cancel(self) -> None:
        """End it with ``CancelledError``, when its thread is free or replaced; on its loop."""
        if self._finished or self._watchdog is not None:
            return  # cancelled once is enough; a second time makes the thread no faster
        if self._claim.acquire(blocking=False):
            self._error = asyncio.CancelledError()
            self._loop.call_soon(self._finish, context=self._context)
            return
        self._watch(self.hang_grace_s)
        if self._interrupt is not None:
            self._interrupt()

    def _watch(self, seconds: float) -> None:
        self._watchdog = self._loop.call_later(seconds, self._on_hang, context=self._context)

    def _on_hang(self) -> None:
        self._watch(max(self.hang_grace_s, _RECHECK_S))  # first: a thread may not start, which raises
        if self.replace(self):
            self._finish()

    def _tell(self) -> None:
        try:  # noqa: SIM105 - `suppress` takes three calls more, once for each batch
            self._loop.call_soon_threadsafe(self._finish, context=self._context)
        except RuntimeError:
            pass  # on a closed loop nothing waits for it

    def _finish(self) -> None:
        if self._finished:
            return  # it was abandoned or replaced, and has ended since
        self._finished = True
        error: BaseException | None = self._abandoned or self._error
        if self._watchdog is not None:
            self._watchdog.cancel()
            error = asyncio.CancelledError()
        elif self._interrupted is not None and error is not None and error is not self._abandoned:
            self._interrupted.__cause__ = error
            error = self._interrupted
        done, value = self._done, self._value
        # or an error's traceback would hold what holds the error
        del self._done
        self._value = self._error = self._interrupted = self._abandoned = None
        self.leave(self)
        try:
            done(value, error)
        finally:
            del error


class JobFuture(asyncio.Future[Any]):
    """What a coroutine awaits of a job; a cancelled one goes on until the job has ended."""

    job: Job

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - the protocol
        """Cancel the job."""
        if self.done():
            return False
        self.job.cancel()
        return True

    def end(self, value: Any, error: BaseException | None) -> None:
        """Take the outcome of the job."""
        del self.job
        if self.done():
            return
        if error is None:
            self.set_result(value)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel()
        elif isinstance(error, StopIteration):  # which no coroutine can raise
            raised = RuntimeError("the call raised StopIteration")
            raised.__cause__ = error
            self.set_exception(raised)
        else:
            self.set_exception(error)
