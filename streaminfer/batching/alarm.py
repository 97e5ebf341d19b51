"""Timer of a dispatcher or router for one instant."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context

from streaminfer._runtime.timers import ExactTimer, exact_timer

__all__ = ["Alarm"]


class Alarm:
    """Timer that calls a function once at an instant; setting it again replaces the instant.

    An event loop waits for whole milliseconds. That is precise enough for a deadline and costs no system call. A pause
    on a shared device can be a fraction of a millisecond, so its end gets an exact timer where the system has one.

    Args:
        function: the event loop calls it at the instant or later; early by no more than the resolution of the loop.
    """

    __slots__ = ("_context", "_exact", "_function", "_handle", "_has_exact", "_loop")

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._handle: asyncio.TimerHandle | None = None
        self._exact: ExactTimer | None = None
        self._has_exact = True
        self._loop: asyncio.AbstractEventLoop
        self._context: Context

    def bind_loop(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Use another loop, and a context for the function's context variables; forget the previous instant."""
        self.close()
        self._loop, self._context, self._has_exact = loop, context, True

    def set(self, at_ns: int, clock: Callable[[], int], *, is_exact: bool) -> None:
        """Call the function at an instant.

        Args:
            at_ns: instant of the clock.
            clock: returns monotonic nanoseconds.
            is_exact: use an exact timer if possible.
        """
        if is_exact and (timer := self._exact_timer(clock)) is not None:
            self._cancel_handle()
            timer.set(at_ns, clock())
            return
        self.cancel()
        self._handle = self._loop.call_later(max(at_ns - clock(), 0) / 1e9, self._function, context=self._context)

    def cancel(self) -> None:
        """Do not call the function until the timer is set again."""
        self._cancel_handle()
        if self._exact is not None and self._exact.is_set:
            self._exact.cancel()

    def close(self) -> None:
        """Cancel the timer and free its system resources; it may be set again."""
        self._cancel_handle()
        if self._exact is not None:
            self._exact.close()
            self._exact = None

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _exact_timer(self, clock: Callable[[], int]) -> ExactTimer | None:
        if self._exact is None and self._has_exact:
            with suppress(OSError, NotImplementedError):  # too many open files, or the loop cannot watch files
                # a copy, because this context is already entered; with no context, a caller's variables would stay
                self._exact = self._context.copy().run(exact_timer, self._loop, clock, self._function)
            self._has_exact = self._exact is not None
        return self._exact
