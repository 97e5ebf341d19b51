# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The probes of a half-open circuit breaker: their permits, and the outcomes so far.

*Design.* Each probe's permit is in a table until it comes back, so that a permit that comes back twice counts once.

*Complexity.* O(capacity) to give a permit and to take one back.

One source, compiled with the C types of ``_probes_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``BreakerMachine`` is. The directives are safe: indexes come from loops over the table's own length.
"""

from __future__ import annotations

from array import array

from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow

__all__ = ["HalfOpenProbes"]

# C variables in the compiled module, not visible from Python
_MAX_SERIAL = 2**20 - 1


class HalfOpenProbes:
    """Permits of probes in flight, and outcomes of probes.

    Args:
        capacity: maximum number of probes.

    Attributes:
        in_flight: number of permits that are out.
        outcomes: outcomes of the probes so far.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._table = array("q", [0]) * capacity
        self.outcomes = OutcomeWindow(capacity, 0)
        self.clear()

    def clear(self) -> None:
        """Forget all permits and outcomes."""
        for place in range(self._capacity):
            self._table[place] = 0
        self._serial = 0
        self.in_flight = 0
        self.outcomes.clear()

    def is_full(self) -> bool:
        """Return whether no more probes may begin."""
        return self.in_flight + self.outcomes.calls >= self._capacity

    def is_unused(self) -> bool:
        """Return whether no probe has begun."""
        return self.in_flight + self.outcomes.calls == 0

    def begin(self, generation: int) -> int:
        """Return the permit of one more probe: the generation's bits and a serial number."""
        self._serial = self._serial + 1 if self._serial < _MAX_SERIAL else 1
        permit = generation | self._serial
        for place in range(self._capacity):
            if self._table[place] == 0:
                self._table[place] = permit
                break
        self.in_flight += 1
        return permit

    def take_back(self, permit: int) -> bool:
        """Take a permit back; return whether it was out."""
        for place in range(self._capacity):
            if self._table[place] == permit:
                self._table[place] = 0
                self.in_flight -= 1
                return True
        return False
