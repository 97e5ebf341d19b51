"""One call in a worker thread, and the delivery of its result to the event loop that waits for it.

A cancelled call ends at once if no thread has begun it, else when its thread is free or replaced. A caller needs no
task to wait: it gets a callback on its loop, or awaits a future. To cancel the future is to cancel the call.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

from streaminfer.errors import Closed

__all__ = ["Done", "Job", "wait_for_job"]

Done = Callable[[Any, BaseException | None], None]
"""Called with the result of a call, or with the exception that it raised."""

_RECHECK_S = 1.0
"""Seconds to the next attempt to replace the thread of a hung call."""


class Job:
    """One call in a worker thread; created on the event loop that receives its result.

    Args:
        function: called with the worker and ``arguments``.
        arguments: further positional arguments.
        interrupt: makes a running call end early; ``None``: the call cannot be interrupted.
        done: called once, on the loop, in a later iteration.

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
        self._context = Context()  # empty: callbacks after the end belong to no caller
        self._claim = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._interrupted: Closed | None = None
        self._abandoned: Closed | None = None
        self._watchdog: asyncio.TimerHandle | None = None  # set if the call was cancelled while it ran
        self._finished = False

    def execute(self, worker: Any) -> None:
        """Run the call in the worker's thread, unless it has ended already."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self._function(worker, *self._arguments)
        except BaseException as error:  # noqa: BLE001 - raised on the event loop
            self._error = error
        self._schedule_finish()

    def abort(self, error: Closed) -> None:
        """End the call with ``error`` if no thread has begun it, else interrupt it; from any thread."""
        if self._claim.acquire(blocking=False):
            self._error = error
            self._schedule_finish()
        elif self._interrupt is not None:
            self._interrupted = error
            self._interrupt()

    def abandon(self, error: Closed) -> None:
        """End the wait with ``error`` while a thread still runs the call; drops its result. From any thread."""
        self._abandoned = error
        self._schedule_finish()

    def cancel(self) -> None:
        """End the call with ``CancelledError``, when its thread is free or replaced; only on its loop."""
        if self._finished or self._watchdog is not None:
            return  # a second cancellation has no effect
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
        self._watch(max(self.hang_grace_s, _RECHECK_S))  # first, because the start of a thread can raise
        if self.replace(self):
            self._finish()

    def _schedule_finish(self) -> None:
        try:  # noqa: SIM105 - `suppress` costs three more calls per batch
            self._loop.call_soon_threadsafe(self._finish, context=self._context)
        except RuntimeError:
            pass  # the loop is closed, so nothing waits for the result

    def _finish(self) -> None:
        if self._finished:
            return  # the call was abandoned or its thread replaced, so it has ended already
        self._finished = True
        error: BaseException | None = self._abandoned or self._error
        if self._watchdog is not None:
            self._watchdog.cancel()
            error = asyncio.CancelledError()
        elif self._interrupted is not None and error is not None and error is not self._abandoned:
            self._interrupted.__cause__ = error
            error = self._interrupted
        done, value = self._done, self._value
        # otherwise the error's traceback would refer to this frame, which refers to the error
        del self._done
        self._value = self._error = self._interrupted = self._abandoned = None
        self.leave(self)
        try:
            done(value, error)
        finally:
            del error


async def wait_for_job(begin: Callable[[Done], Job]) -> Any:
    """Begin a job, and return its result.

    Args:
        begin: begins the job, whose end it passes to its argument.

    Raises:
        BaseException: the exception of the job.
    """
    future = _JobFuture()
    future.job = begin(future.end)
    try:
        return await future
    finally:
        del future  # otherwise an error's traceback would refer to this frame, and the future to the error


class _JobFuture(asyncio.Future[Any]):
    """Future of a job, for a coroutine to await; after a cancellation it stays pending until the job has ended."""

    job: Job

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - the protocol
        """Cancel the job."""
        if self.done():
            return False
        self.job.cancel()
        return True

    def end(self, value: Any, error: BaseException | None) -> None:
        """Set the result or exception of the job."""
        del self.job
        if error is None:
            self.set_result(value)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel()
        elif isinstance(error, StopIteration):  # a future cannot raise StopIteration
            raised = RuntimeError("the call raised StopIteration")
            raised.__cause__ = error
            self.set_exception(raised)
        else:
            self.set_exception(error)
