"""Clock of a layer: the user's, else that of the `Stack`; and its statistics in a notebook."""

import types
from typing import Any

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.validation import check_clock
from streaminfer.protocols import Clock

__all__ = ["StackClock", "unfailing"]


class StackClock:
    """Layer that uses the clock of a `Stack`, unless one was given.

    Its constructor must call ``_accept_clock`` and use the clock that this returns. A notebook shows its statistics.
    """

    __slots__ = ()

    _clock: Any
    _clock_given: bool
    statistics: Any

    def _accept_clock(self, clock: object) -> Any:
        self._clock_given = clock is not None  # type: ignore[misc] # a subclass has the slot
        return check_clock("clock", clock)

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self._clock_given = True  # type: ignore[misc] # see above
            self._use_clock(clock)

    def _use_clock(self, clock: Clock) -> None:
        self._clock = clock

    def _repr_html_(self) -> str:
        return str(self.statistics()._repr_html_())


def unfailing(clock: Clock) -> Clock:
    """Return a clock that never raises: on an error it repeats its latest instant, and the first error is logged.

    A clock written in C, such as ``time.monotonic_ns``, is returned unchanged.
    """
    if isinstance(clock, types.BuiltinFunctionType):
        return clock
    latest_ns = 0
    failures = ErrorLog("streaminfer")

    def read() -> int:
        nonlocal latest_ns
        try:
            latest_ns = clock()
        except Exception as error:  # noqa: BLE001 - whatever a clock raises, the requests end
            failures.report("the clock", error)
        return latest_ns

    return read
