"""Random numbers and hashes of 64 bits: splitmix64 (Steele, Lea and Flood 2014).

One source, compiled with the C types of ``_splitmix_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

__all__ = ["SplitMix", "mixed", "uniform"]

# C variables in the compiled module, not visible from Python
_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIT = 2.0**-53


class SplitMix:
    """A sequence of random numbers.

    Args:
        seed: 0 ≤ seed < 2^63.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed

    def unit(self) -> float:
        """Return the next number, above 0 and below 1."""
        self._state = (self._state + _STEP) & _MASK
        return uniform(mixed(self._state))


def mixed(value: int) -> int:
    """Return a hash of 64 bits."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def uniform(value: int) -> float:
    """Return 64 bits as a number above 0 and below 1."""
    return ((value >> 11) + 0.5) * _UNIT
