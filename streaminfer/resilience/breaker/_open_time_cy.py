# cython: boundscheck=False, cdivision=True
"""Open time of a circuit breaker: it doubles with each consecutive trip; jitter shortens it.

*Design.* The next open time is drawn in advance, so that reading it changes nothing. Jitter shortens it by up to a
tenth, so that clients do not all return at once. The jitter comes from a linear congruential generator, because the
draw must call no Python.

One source, compiled with the C types of ``_open_time_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``BreakerMachine`` is.
"""

from __future__ import annotations

__all__ = ["OpenTime"]

# C variables in the compiled module, not visible from Python
_JITTER = 0.1
_LCG_SPAN = 2**31


class OpenTime:
    """The next open time.

    Args:
        first_ns: open time after the first trip.
        longest_ns: longest open time; at least ``first_ns``.
        seed: seed of the jitter, 0 ≤ seed < 2^31.

    Attributes:
        first_ns: the same.
        longest_ns: the same.
        next_ns: the next open time.
    """

    def __init__(self, first_ns: int, longest_ns: int, seed: int) -> None:
        self.first_ns = first_ns
        self.longest_ns = longest_ns
        self._base_ns = first_ns
        self._random = seed

    def reset(self) -> None:
        """Return to the first open time."""
        self._base_ns = self.first_ns
        self._draw()

    def lengthen(self) -> None:
        """Double the open time, up to the longest."""
        self._base_ns = min(2 * self._base_ns, self.longest_ns)
        self._draw()

    def _draw(self) -> None:
        self._random = (self._random * 1103515245 + 12345) & (_LCG_SPAN - 1)
        shorter = _JITTER * self._random / _LCG_SPAN
        self.next_ns = self._base_ns - int(shorter * self._base_ns)
