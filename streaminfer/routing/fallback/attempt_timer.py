"""The one timer for all attempts of a `FallbackRouter`."""

import asyncio

from streaminfer._internal.units import NEVER_NS
from streaminfer.protocols import Clock
from streaminfer.routing.fallback._fast_path_cy import FastPath

__all__ = ["AttemptTimer"]


class AttemptTimer:
    """Interrupts the attempts that are due.

    Args:
        fast_path: has the attempts in flight.
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, fast_path: FastPath, clock: Clock) -> None:
        self._fast_path = fast_path
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at_ns: int, now_ns: int) -> None:
        """Set the timer, in place of an earlier setting."""
        self.cancel()
        self._fast_path.attempts.timer_ns = at_ns
        self._timer = asyncio.get_running_loop().call_later((at_ns - now_ns) / 1e9, self._fire)

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fast_path.attempts.timer_ns = NEVER_NS

    def _fire(self) -> None:
        # loops fire early by their resolution: a timer for an instant means that the instant has come
        now_ns = max(self._clock(), self._fast_path.attempts.timer_ns)
        self._timer = None
        at_ns = self._fast_path.attempts.interrupt_due(now_ns)
        if at_ns != NEVER_NS:
            self.set(at_ns, now_ns)
