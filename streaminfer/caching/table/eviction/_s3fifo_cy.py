# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""S3-FIFO [1]: entries that are used once are evicted first.

*Design.* New entries go to the queue small. At the end of small, an entry moves on to main if it was hit; otherwise it
is evicted and leaves a ghost, a record of its key. A key that returns while it has such a ghost goes to main at once.
Main is a FIFO with a second chance: an entry counts its hits up to 3, and each pass costs one. A scan therefore passes
through small without touching main, and a hit writes one byte instead of moving links.

It departs from the paper where real traces gained by it (``benchmarks/run.py cache``):

* While main is not full, entries that leave small go there, hit or not. Otherwise a loop over more entries than the
  cache holds would leave main empty, and the cache would be a plain FIFO without a hit. Main counts as full until it
  has lost a quarter.
* Small has no fixed size, because a tenth is too little for bursts. Both queues leave ghosts, as in ARC [2], but only
  ghosts among the latest tenth of the capacity vote: a return from small moves the border one entry up, a return from
  main one entry down. Votes of older ghosts would drive the border to where the most misses are. The size of small
  stays between a hundredth and a half of the capacity.
* A key that returns after its eviction from main goes to small: its ghost only votes, if it is young, and is removed.
* A key that is stored again while it is stale goes to main, because it was requested again.

*Parameters.* One hit moves an entry on; requiring two changes the mean by less than a point. Hits count to 3, as in the
paper. Ghosts reach back as far as there are entries. With half as many, several traces lose up to 20 points; with twice
as many, loops of three times the capacity thrash main. Half or twice any parameter changes the mean share of the gap
between LRU and the optimum by less than three points. Ghosts lie in a table of fingerprints, four to a row: 32 bits of
the hash, the queue, and the number of the eviction. A ghost is removed when too many evictions came after it, or when
its row is full of younger ghosts.

*Complexity.* O(1) amortized: an entry passes through main at most as often as it was hit. Ghosts take 12 bytes per
slot; all else lies in ``_slots_cy``.

*References.* [1] Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. [2] Megiddo and Modha,
"ARC", FAST 2003. One source, compiled with the C types of ``_s3fifo_cy.pxd`` or run as plain Python.
"""

from collections.abc import MutableSequence

from streaminfer.caching.table._eviction_cy import EvictionOrder
from streaminfer.caching.table._slots_cy import MAIN, NEGATIVE, SMALL, STALE, Slots, address_of, aligned

__all__ = ["Policy"]

fetch = hash  # starts to load the cache line at an address; does so only in the compiled module

# C variables in the compiled module, not visible from Python
_HIT = 4  # in a slot's marks
_HITS = 12
_MAX_HITS = 12  # three hits, the most that S3-FIFO counts
_PROMOTION_HITS = 4
_SMALL_SHARE = 10  # a tenth of the capacity at first
_SMALL_LEAST = 100
_SMALL_MOST = 2
_YOUNG_SHARE = 10
_REFILL_BITS = 2  # a quarter: main is filled again when it has lost that much
_WAYS = 4
_FROM_MAIN = 2**31  # in a ghost: the queue
_LOW31 = 2**31 - 1
_NO_LIMIT = 2**63 - 1


class Policy(EvictionOrder):
    """S3-FIFO: the queues small and main, and the ghosts of both."""

    _ghosts: MutableSequence[int]

    def __init__(self, slots: Slots, maxsize: int, max_bytes: int) -> None:
        EvictionOrder.__init__(self, slots, maxsize, max_bytes)
        self._small_count = self._share_of(maxsize, _SMALL_SHARE)
        self._small_bytes = self._share_of(max_bytes, _SMALL_SHARE)
        self._rows = _ghost_rows(slots.capacity)
        ghosts = aligned("Q", self._rows)
        self._ghosts = ghosts
        self._address = address_of(ghosts)
        self._evicted_from_small = 2**30  # far from 0, which is an empty place
        self._evicted_from_main = 2**30
        self._full = False

    def grow(self, capacity: int) -> None:
        """Make room for the ghosts of ``capacity`` slots; a smaller capacity than the current one changes nothing."""
        ghosts = aligned("Q", _ghost_rows(capacity))
        self._move(ghosts, address_of(ghosts))

    def _move(self, ghosts: MutableSequence[int], address: int) -> None:
        # a typed argument: the compiled view of the new memory exists before this reads the old one
        if len(ghosts) <= len(self._ghosts):
            return
        old = self._ghosts
        self._ghosts = ghosts
        self._address = address
        self._rows = len(ghosts) // _WAYS
        for place in range(len(old)):
            if old[place]:
                self._add_ghost(old[place])

    def add(self, slot: int, size: int) -> None:
        """Add an entry: to main if it was stale or its ghost shows that the key returns, else to small."""
        mixed = self._slots._words[4 * slot]
        self._enter(slot, size, MAIN if mixed & 3 == STALE or self._pop_ghost(mixed) else SMALL)
        self._newest = slot

    def touch(self, slot: int) -> None:
        """Count a hit."""
        if self._slots._words[4 * slot] & _HITS < _MAX_HITS:
            self._slots._words[4 * slot] += _HIT

    def predicted_victim(self) -> int:
        """Guess the next victim: the oldest of small."""
        return self._slots._ints[8 * SMALL + 7]

    def prefetch(self, slot: int) -> None:
        """Start to load the row of a slot's ghost."""
        fetch(self._address + 32 * (((self._slots._words[4 * slot] >> 31) * self._rows) >> 32))

    def _next(self) -> int:
        while self._counts[SMALL] + self._counts[MAIN]:
            over = self._counts[SMALL] > 1 and (
                self._counts[SMALL] > self._small_count or self._bytes[SMALL] > self._small_bytes
            )
            oldest = self._slots._ints[8 * MAIN + 7]
            if over or self._counts[MAIN] == 0 or (oldest == self._newest and self._counts[MAIN] == 1):
                slot = self._slots._ints[8 * SMALL + 7]
                if self._counts[SMALL] == 0:
                    return oldest  # there is no other
                if self._slots._words[4 * slot] & _HITS < _PROMOTION_HITS and not (over and self._fills_main()):
                    return slot
                if self._counts[SMALL] + self._counts[MAIN] == 1:
                    return slot
                self.move(slot, MAIN)
            else:
                hits = self._slots._words[4 * oldest] & _HITS
                if hits == 0 and oldest != self._newest:
                    return oldest
                if hits:
                    self._slots._words[4 * oldest] -= _HIT
                self._unlink(oldest)
                self._link(oldest, MAIN)
        return -1

    def _fills_main(self) -> bool:
        """Return whether main is not full; its capacity is what small, failures and stale entries leave."""
        count_room = self._maxsize - self._small_count - self._counts[NEGATIVE] - self._counts[STALE]
        bytes_room = self._max_bytes - self._small_bytes - self._bytes[NEGATIVE] - self._bytes[STALE]
        count_left = count_room - self._counts[MAIN]
        bytes_left = bytes_room - self._bytes[MAIN]
        if count_left <= 0 or bytes_left <= 0:
            self._full = True
        elif count_left > count_room >> _REFILL_BITS and bytes_left > bytes_room >> _REFILL_BITS:
            self._full = False
        return not self._full

    def evicted(self, slot: int) -> None:
        """Leave a ghost of the evicted entry."""
        ghost = (self._slots._words[4 * slot] >> 31) << 32
        queue = self._slots._words[4 * slot] & 3
        if queue == SMALL:
            self._evicted_from_small += 1
            self._add_ghost(ghost | (self._evicted_from_small & _LOW31))
        elif queue == MAIN:
            self._evicted_from_main += 1
            self._add_ghost(ghost | _FROM_MAIN | (self._evicted_from_main & _LOW31))

    def _pop_ghost(self, mixed: int) -> bool:
        """Return whether a returning key goes to main at once; its ghost votes, if it is young, and is removed."""
        fingerprint = mixed >> 31
        row = _WAYS * ((fingerprint * self._rows) >> 32)
        for place in range(row, row + _WAYS):
            ghost = self._ghosts[place]
            if ghost >> 32 == fingerprint and ghost:
                self._ghosts[place] = 0
                age = self._age(ghost)
                if age * _YOUNG_SHARE <= self.count:
                    self._move_border(-1 if ghost & _FROM_MAIN else 1)
                return not ghost & _FROM_MAIN and age < self.count
        return False

    def _age(self, ghost: int) -> int:
        """Return how many entries were evicted from the ghost's queue after it."""
        evicted = self._evicted_from_main if ghost & _FROM_MAIN else self._evicted_from_small
        return (evicted - ghost) & _LOW31

    def _move_border(self, entries: int) -> None:
        """Make small larger by some entries, or smaller if ``entries`` is negative, and main the reverse."""
        self._small_count = _between(
            self._share_of(self._maxsize, _SMALL_LEAST),
            self._small_count + entries,
            self._share_of(self._maxsize, _SMALL_MOST),
        )
        if self.count:
            self._small_bytes = _between(
                self._share_of(self._max_bytes, _SMALL_LEAST),
                self._small_bytes + entries * (self.bytes // self.count),
                self._share_of(self._max_bytes, _SMALL_MOST),
            )

    def _add_ghost(self, ghost: int) -> None:
        """Write a ghost over the oldest one of its row, or into an empty place."""
        row = _WAYS * (((ghost >> 32) * self._rows) >> 32)
        chosen = row
        least = _NO_LIMIT
        young = self.count // _YOUNG_SHARE
        for place in range(row, row + _WAYS):
            existing = self._ghosts[place]
            if existing == 0:
                chosen = place
                break
            remaining = (young if existing & _FROM_MAIN else self.count) - self._age(existing)
            if remaining < least:
                least = remaining
                chosen = place
        self._ghosts[chosen] = ghost


def _between(least: int, number: int, most: int) -> int:
    return least if number < least else most if number > most else number


def _ghost_rows(capacity: int) -> int:
    """Return the number of rows for one and a half ghosts per slot."""
    return (3 * capacity + 2 * _WAYS - 1) // (2 * _WAYS)
