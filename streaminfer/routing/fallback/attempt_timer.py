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

    It is exact where the system has such timers: a default response has a millisecond of time, which an event loop
    would round away.

    Args:
        fast_path: has the attempts in flight.
        clock: returns monotonic nanoseconds.

    Attributes:
        clock: the same.
    """

    def __init__(self, fast_path: FastPath, clock: Clock) -> None:
        self.clock = clock
        self._fast_path = fast_path
        self._alarm = Alarm(self._fire)

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use another event loop; what was set before is forgotten."""
        self._alarm.bind_loop(loop, Context())
        self._fast_path.attempts.timer_ns = NEVER_NS

    def set(self, at_ns: int) -> None:
        """Set the timer, in place of an earlier setting."""
        self._fast_path.attempts.timer_ns = at_ns
        self._alarm.set(at_ns, self.clock, is_exact=True)

    def close(self) -> None:
        """Cancel the timer, and free what the system holds; it may be set again."""
        self._alarm.close()
        self._fast_path.attempts.timer_ns = NEVER_NS

    def _fire(self) -> None:
        # loops fire early by their resolution: a timer for an instant means that the instant has come
        now_ns = max(self.clock(), self._fast_path.attempts.timer_ns)
        at_ns = self._fast_path.attempts.interrupt_due(now_ns)
        if at_ns != NEVER_NS:
            self.set(at_ns)
