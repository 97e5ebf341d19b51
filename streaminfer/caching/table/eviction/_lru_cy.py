# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""LRU: all fresh entries are in main; a hit moves an entry to the newest end, and the oldest is evicted first.

*Invariant*, which the property tests check: the order of main is that of last use. One source, compiled with the C
types of ``_lru_cy.pxd`` or run as plain Python.
"""

from streaminfer.caching.table._eviction_cy import EvictionOrder
from streaminfer.caching.table._slots_cy import MAIN

__all__ = ["Policy"]


class Policy(EvictionOrder):
    """Least recently used first."""

    def touch(self, slot: int) -> None:
        """Move the slot to the newest end of main, unless it is there or in another queue."""
        if self._slots._ints[6] != slot and self._slots._words[4 * slot] & 3 == MAIN:
            self._unlink(slot)
            self._link(slot, MAIN)
