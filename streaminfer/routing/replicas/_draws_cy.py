"""Random numbers and hashes of the choice among replicas: splitmix64 (Steele, Lea and Flood 2014).

*Complexity.* A few machine instructions per number, a pass over the replicas per drawn replica.

One source, compiled with the C types of ``_draws_cy.pxd`` or run uncompiled. Not thread-safe, like its owner
``P2CBalancer``.
"""

from __future__ import annotations

from streaminfer.routing.replicas._replica_stats_cy import ReplicaStats

__all__ = ["UniformDraws", "unit_hash"]

# C variables in the compiled module, not visible from Python
_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIT = 2.0**-53


class UniformDraws:
    """Random numbers above 0 and below 1; the same seed gives the same numbers.

    Args:
        seed: 0 ≤ seed < 2^64.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> float:
        """Return the next number."""
        self._state = (self._state + _STEP) & _MASK
        return unit_hash(self._state)

    def slot(self, slots: list[ReplicaStats], total: float, own: bool) -> int:
        """Draw a replica by its share, at home or elsewhere; ``total`` is the sum of the shares there. -1: none."""
        remaining = self.next() * total
        last = -1
        for number, slot in enumerate(slots):
            if slot.share <= 0.0 or (slot.penalty <= 1.0) != own:
                continue
            last = number
            remaining -= slot.share
            if remaining < 0.0:
                break
        return last


def unit_hash(value: int) -> float:
    """Return the number above 0 and below 1 that is determined by a number of 64 bits."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    value = value ^ (value >> 31)
    return ((value >> 11) + 0.5) * _UNIT
