# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The usual duration of a call, from the last few that succeeded.

*Design.* The median, not the mean: one call that loads a model would raise the mean above every deadline, and from then
on calls that hang would not count as failures.

*Complexity.* O(1) to add; the median compares all pairs of at most 16 durations.

One source, compiled with the C types of ``_recent_durations_cy.pxd`` or run uncompiled. Not thread-safe; its
owner ``BreakerMachine`` is. The directives are safe: indexes are taken modulo the length of the ring.
"""

from __future__ import annotations

from array import array

__all__ = ["RecentDurations"]

# C variables in the compiled module, not visible from Python
_CAPACITY = 16  # a power of two
_MIN_COUNT = 3  # with fewer, the median may be any of them, for instance the one call that loaded the model


class RecentDurations:
    """The durations of the last calls."""

    def __init__(self) -> None:
        self._durations_ns = array("q", [0]) * _CAPACITY
        self._count = 0

    def add(self, duration_ns: int) -> None:
        """Add one duration."""
        self._durations_ns[self._count & (_CAPACITY - 1)] = duration_ns
        self._count += 1

    def median_ns(self) -> int:
        """Return the upper median; 0: there are too few durations."""
        count = self._count if self._count < _CAPACITY else _CAPACITY
        if count < _MIN_COUNT:
            return 0
        return sorted(self._durations_ns[:count])[count >> 1]
