# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Queues of a table, and the parts that all eviction policies share.

*Design.* Four queues, each a circular doubly linked list through the slots, newest first:

* main and small: the fresh entries, in an order that the policy sets (`streaminfer.caching.table.eviction`).
* stale: expired entries that can still be used, first in, first out. Those beyond an eighth of the capacity are evicted
  before fresh entries. The others stay, because popular entries are also stale until they are refreshed.
* negative: remembered failures, first in, first out, in at most a sixteenth of the capacity.

The table makes room after it has added an entry, because sizes differ, but never by evicting that entry.

*Invariants*, which the property tests check. An entry is in exactly one queue. The counts and bytes of a queue
are the sums of its entries. A victim is never the entry that was stored last, unless it is the only one.

One source, compiled with the C types of ``_eviction_cy.pxd`` or run as plain Python.
"""

from array import array

from streaminfer.caching.table._slots_cy import MAIN, NEGATIVE, SMALL, STALE, Slots

__all__ = ["EvictionOrder"]

# C variables in the compiled module, not visible from Python
_QUEUES = 4
_NO_MARKS = -16
_NEGATIVE_SHARE = 16
_STALE_SHARE = 8


class EvictionOrder:
    """Queues of one table. A policy is a subclass that decides where entries go, what a hit does and what is evicted.

    Args:
        slots: the table's slots, with the queue, the neighbors and the bytes of each.
        maxsize: most entries, which sets the shares; 2^63 - 1: no limit.
        max_bytes: most bytes, which sets the shares; 2^63 - 1: no limit.

    Attributes:
        count: entries in all queues.
        bytes: sum of their sizes.
    """

    def __init__(self, slots: Slots, maxsize: int, max_bytes: int) -> None:
        self._slots = slots
        self._maxsize = maxsize
        self._max_bytes = max_bytes
        self._negative_count = self._share_of(maxsize, _NEGATIVE_SHARE)
        self._negative_bytes = self._share_of(max_bytes, _NEGATIVE_SHARE)
        self._stale_count = self._share_of(maxsize, _STALE_SHARE)
        self._stale_bytes = self._share_of(max_bytes, _STALE_SHARE)
        self._counts = array("q", [0]) * _QUEUES
        self._bytes = array("q", [0]) * _QUEUES
        self._newest = 0
        self.count = 0
        self.bytes = 0

    # -- for a policy -------------------------------------------------------------------------------------------

    def add(self, slot: int, size: int) -> None:
        """Add an entry as the newest of a queue.

        Args:
            slot: a slot that is in no queue.
            size: its bytes.
        """
        self._enter(slot, size, MAIN)
        self._newest = slot

    def touch(self, slot: int) -> None:
        """Note a hit."""

    def predicted_victim(self) -> int:
        """Guess the next victim; a slot below ``FIRST`` means none."""
        return self._slots._ints[7]

    def _next(self) -> int:
        """Return the next victim among the fresh entries, or -1; move the entries that the policy spares."""
        return self._slots._ints[7] if self._counts[MAIN] else -1

    def prefetch(self, slot: int) -> None:
        """Start to load the memory that ``evicted`` will read for a slot, without waiting."""

    def evicted(self, slot: int) -> None:
        """Note that a victim is evicted; called before its removal."""

    def grow(self, capacity: int) -> None:
        """Make room for the notes on ``capacity`` slots; a smaller capacity than the current one changes nothing."""

    # -- the queues ---------------------------------------------------------------------------------------------

    def add_negative(self, slot: int, size: int) -> None:
        """Add a remembered failure."""
        self._enter(slot, size, NEGATIVE)

    def remove(self, slot: int) -> None:
        """Remove a slot from its queue."""
        self._unlink(slot)
        queue = self._slots._words[4 * slot] & 3
        size = self._slots._words[4 * slot + 2]
        self._counts[queue] -= 1
        self._bytes[queue] -= size
        self.count -= 1
        self.bytes -= size

    def renew(self, slot: int, size: int) -> None:
        """Note that the value of a slot was replaced, which counts as a hit."""
        more = size - self._slots._words[4 * slot + 2]
        if more:
            self._slots._words[4 * slot + 2] = size
            self._bytes[self._slots._words[4 * slot] & 3] += more
            self.bytes += more
        self._newest = slot
        self.touch(slot)

    def move(self, slot: int, queue: int) -> None:
        """Move an entry to the newest end of another queue and clear its marks."""
        size = self._slots._words[4 * slot + 2]
        self.remove(slot)
        self._enter(slot, size, queue)

    def victim(self, alive: bool) -> int:
        """Return the next victim without removing it; move the entries that the policy spares.

        Args:
            alive: consider fresh entries only.

        Returns:
            A slot; -1 if there is none.
        """
        if not alive:
            last = self._counts[MAIN] + self._counts[SMALL] <= 1
            if self._counts[STALE] and (
                last or self._counts[STALE] > self._stale_count or self._bytes[STALE] > self._stale_bytes
            ):
                return self._slots._ints[8 * STALE + 7]
            if self._counts[NEGATIVE] and (
                last or self._counts[NEGATIVE] > self._negative_count or self._bytes[NEGATIVE] > self._negative_bytes
            ):
                return self._slots._ints[8 * NEGATIVE + 7]
        return self._next()

    def count_in(self, queue: int) -> int:
        """Return the number of entries of a queue."""
        return self._counts[queue]

    def bytes_in(self, queue: int) -> int:
        """Return the bytes of a queue."""
        return self._bytes[queue]

    def newer_than(self, slot: int) -> int:
        """Return the next newer slot: after a queue's number its oldest slot, after its newest slot that number."""
        return self._slots._ints[8 * slot + 7]

    def _enter(self, slot: int, size: int, queue: int) -> None:
        self._slots._words[4 * slot + 2] = size
        self._slots._words[4 * slot] = (self._slots._words[4 * slot] & _NO_MARKS) | queue
        self._counts[queue] += 1
        self._bytes[queue] += size
        self.count += 1
        self.bytes += size
        self._link(slot, queue)

    def _link(self, slot: int, queue: int) -> None:
        newest = self._slots._ints[8 * queue + 6]
        self._slots._ints[8 * slot + 6] = newest
        self._slots._ints[8 * slot + 7] = queue
        self._slots._ints[8 * newest + 7] = slot
        self._slots._ints[8 * queue + 6] = slot

    def _unlink(self, slot: int) -> None:
        older = self._slots._ints[8 * slot + 6]
        newer = self._slots._ints[8 * slot + 7]
        self._slots._ints[8 * older + 7] = newer
        self._slots._ints[8 * newer + 6] = older

    def _share_of(self, limit: int, share: int) -> int:
        """Return one ``share``-th of a limit, at least 1; that of no limit is too large to matter."""
        return limit // share if limit >= share else 1
