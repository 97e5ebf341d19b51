"""One call in a worker thread, and the way back to the event loop that waits for it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from streaminfer.errors import Closed

__all__ = ["Job"]


_RECHECK_S = 1.0
"""Seconds to the next attempt to replace the thread of a hung call."""


class Job:
    """One call in a worker thread.

    Args:
        function: called with the worker and ``arguments``.
        arguments: further positional arguments.
        interrupt: asks a running call to end early; ``None``: it cannot be asked.

    Attributes:
        finished: its end has reached the event loop that waits.
    """

    __slots__ = (
        "_abandoned",
        "_arguments",
        "_claim",
        "_error",
        "_function",
        "_future",
        "_interrupt",
        "_interrupted",
        "_loop",
        "_value",
        "finished",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        interrupt: Callable[[], None] | None,
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._interrupt = interrupt
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self._claim = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._interrupted: Closed | None = None
        self._abandoned: Closed | None = None
        self.finished = False

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
        """End it with ``error`` if no thread has begun it, else ask it to end early; from any thread."""
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

    async def wait(self, hang_grace_s: float, replace: Callable[["Job"], bool]) -> Any:
        """Return what the function returned, or raise what it raised.

        A cancelled wait goes on until the thread is free or replaced.

        Args:
            hang_grace_s: seconds after which a cancelled call that still runs counts as hung.
            replace: gives the worker of a hung call another thread; false if it could not, or need not.
        """
        try:
            await self._future
        except asyncio.CancelledError:
            if not self._claim.acquire(blocking=False):
                if self._interrupt is not None:
                    self._interrupt()
                await self._until_free(hang_grace_s, replace)
            raise
        error = self._abandoned or self._error
        if error is None:
            return self._value
        try:
            if self._interrupted is not None and error is not self._abandoned:
                raise self._interrupted from error
            raise error
        finally:
            # or its traceback would hold this frame, and the frame it
            self._error = self._interrupted = self._abandoned = None
            del error

    async def _until_free(self, hang_grace_s: float, replace: Callable[["Job"], bool]) -> None:
        checks_at = self._loop.time() + hang_grace_s
        while not self.finished:
            self._future = self._loop.create_future()
            watchdog = self._loop.call_at(checks_at, self._future_done, self._future)
            # cancelled once is enough; a second time makes the thread no faster
            with contextlib.suppress(asyncio.CancelledError):
                await self._future
            watchdog.cancel()
            if self._has_finished() or self._loop.time() < checks_at:
                continue
            if replace(self):
                return
            checks_at = self._loop.time() + max(hang_grace_s, _RECHECK_S)

    def _has_finished(self) -> bool:
        return self.finished  # may have changed since it was last read, which mypy does not expect

    def _tell(self) -> None:
        # on a closed loop nothing waits for it
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self.finished = True
        self._future_done(self._future)

    @staticmethod
    def _future_done(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)
