"""Whose clock a layer reads, the one that its user gave, else that of the `Stack`; and what a notebook shows of it."""

from typing import Any

from streaminfer._internal.validation import check_instance
from streaminfer.protocols import Clock

__all__ = ["StackClock"]


class StackClock:
    """Layer that takes over the clock of a `Stack`, unless one was given: its constructor calls ``_accept_clock``.

    A notebook shows its statistics.
    """

    __slots__ = ()

    _clock: Any
    _clock_given: bool
    statistics: Any

    def _accept_clock(self, clock: object) -> None:
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        self._clock_given = clock is not None  # type: ignore[misc] # a subclass has the slot

    def bind_clock(self, clock: Clock) -> None:
        """Take over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self._clock_given = True  # type: ignore[misc] # see above
            self._use_clock(clock)

    def _use_clock(self, clock: Clock) -> None:
        self._clock = clock

    def _repr_html_(self) -> str:
        return str(self.statistics()._repr_html_())
