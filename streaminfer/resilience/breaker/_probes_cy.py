"""The probes of a half-open circuit breaker: their permits, and the outcomes so far.

*Design.* Each probe's permit is in a set until it comes back, so that a permit that comes back twice counts once.

One source, compiled with the C types of ``_probes_cy.pxd`` or run uncompiled. Not thread-safe; its owner
``BreakerMachine`` is.
"""

from __future__ import annotations

from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow

__all__ = ["HalfOpenProbes"]

# C variables in the compiled module, not visible from Python
_MAX_SERIAL = 2**20 - 1


class HalfOpenProbes:
    """Permits of probes in flight, and outcomes of probes.

    Args:
        capacity: maximum number of probes.

    Attributes:
        in_flight: permits that are out.
        outcomes: outcomes of the probes so far.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._serial = 0
        self.in_flight: set[int] = set()
        self.outcomes = OutcomeWindow(capacity, 0)

    def clear(self) -> None:
        """Forget all permits and outcomes."""
        self._serial = 0
        self.in_flight.clear()
        self.outcomes.clear()

    def is_full(self) -> bool:
        """Return whether no more probes may begin."""
        return len(self.in_flight) + self.outcomes.calls >= self._capacity

    def is_unused(self) -> bool:
        """Return whether no probe has begun."""
        return len(self.in_flight) + self.outcomes.calls == 0

    def begin(self, generation: int) -> int:
        """Return the permit of one more probe: the generation's bits and a serial number."""
        self._serial = self._serial + 1 if self._serial < _MAX_SERIAL else 1
        permit = generation | self._serial
        self.in_flight.add(permit)
        return permit

    def take_back(self, permit: int) -> bool:
        """Take a permit back; return whether it was out."""
        if permit not in self.in_flight:
            return False
        self.in_flight.remove(permit)
        return True
