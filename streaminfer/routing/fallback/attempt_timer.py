"""The one timer for all attempts of a `FallbackRouter`."""

import asyncio
from contextvars import Context

from streaminfer._internal.units import NEVER_NS
from streaminfer.batching.alarm import Alarm
from streaminfer.protocols import Clock
from streaminfer.routing.fallback._fast_path_cy import FastPath

__all__ = ["AttemptTimer"]


class AttemptTimer:
    """Interrupts the attempts that are due.

    The timer is exact if the system has exact timers: a default response has a millisecond of time, which an event loop
    would round away.

    Args:
        fast_path: holds the attempts in flight.
        clock: returns monotonic nanoseconds.

    Attributes:
        clock: the same.
    """

    def __init__(self, fast_path: FastPath, clock: Clock) -> None:
        self.clock = clock
        self._fast_path = fast_path
        self._loop_timer = Alarm(self._fire)

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use another event loop and forget an earlier setting of the timer."""
        self._loop_timer.bind_loop(loop, Context())
        self._fast_path.attempts.timer_ns = NEVER_NS

    def set(self, at_ns: int) -> None:
        """Set the timer, in place of an earlier setting."""
        self._fast_path.attempts.timer_ns = at_ns
        self._loop_timer.set(at_ns, self.clock, is_exact=True)

    def close(self) -> None:
        """Cancel the timer and free its system resources; it may be set again."""
        self._loop_timer.close()
        self._fast_path.attempts.timer_ns = NEVER_NS

    def _fire(self) -> None:
        # event loops fire early by up to their resolution: treat the instant of the timer as reached
        now_ns = max(self.clock(), self._fast_path.attempts.timer_ns)
        at_ns = self._fast_path.attempts.interrupt_due(now_ns)
        if at_ns != NEVER_NS:
            self.set(at_ns)
