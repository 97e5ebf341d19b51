# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Which entry goes when there is no room: LRU, or S3-FIFO.

Four queues, each a circular doubly linked list through the slots themselves, newest first:

* *main*: under LRU every entry that is fresh; a hit moves it to the newest end and the oldest goes first.
* *small*: under S3-FIFO (Yang, Zhang, Qiu, Yue and Vinayak, "FIFO queues are all you need for cache eviction",
  SOSP 2023) where newcomers wait. One that is asked for while it waits moves on to main; one that is not goes, and
  leaves a *ghost*. Who comes back while the ghost remembers goes to main at once. Main is a FIFO with a second chance:
  an entry has a count of hits up to 3, and each pass costs one. So a scan passes through the small queue without
  touching main, and a hit writes one byte instead of moving links.
* *stale*: entries past their time that are kept in case the answer cannot be refreshed. They go first.
* *negative*: remembered failures, first in, first out, in at most a sixteenth of the room, so that a flood of them
  drives out nothing.

**What is different from the paper**, each time because real traces asked for it (``benchmarks/bench_cache.py``):

* *Main is filled first.* As long as main is not full, who leaves the small queue goes there, asked for or not. In the
  paper nothing reaches main that was not asked for in time, so a loop over more than the cache holds leaves main empty
  and the small queue grows to all the room: a plain FIFO, without a hit. Filled, main keeps its part of the loop. It
  costs nothing elsewhere, for what main holds in vain makes place for the first that were asked for. Main counts as
  full until it has lost a quarter, so that in between nobody slips in.
* *The small queue has no fixed size.* A tenth suits most; where keys are used in bursts it is too small by far. As ARC
  does (Megiddo and Modha, FAST 2003) both queues leave ghosts, but only the young ones vote: those of the last tenth of
  the room. One that comes back from small says that a slightly longer small queue would have had a hit, one from main
  the same of main; each moves the border by one entry. Old ghosts say nothing about the margin, and in ARC their
  votes drive the border to where the most misses are. The border stays between a hundredth and a half of the room.
* *Who comes back young from main waits in small* like any newcomer: its ghost votes, and is forgotten.
* *A newcomer does not go for itself*: the paper makes room first, but here sizes differ and room is made afterwards.

The constants: one hit moves an entry on (two, as in the authors' code, changes the mean by less than a point); hits are
counted to 3, as in the paper; ghosts reach as far as there are entries (the paper: as main has): with half of that
several traces lose up to 20 points, with twice of it loops of three times the room thrash main. All lie on plateaus:
half or twice any of them changes the mean share of the gap between LRU and the optimum by less than three points.

Ghosts lie in a table of fingerprints, four to a row: 32 bits of the hash, the queue, and the running number of the
eviction from it. A ghost is forgotten when too many came after it, or when its row is full of ones with longer to live.

Invariants, which the property tests check: an entry is in exactly one queue; counts and bytes of the queues are those
of their entries; under LRU the order of main is the order of last use; a victim is never the entry that was added or
replaced last, unless it is the only one.

Cost: O(1) amortised: an entry passes through main at most as often as it was hit. No floating point, no randomness. 18
bytes a slot, and 12 for the ghosts under S3-FIFO.

One source, compiled with the C types of ``_eviction_cy.pxd`` or run as it is. Synchronous. Threads: as ``_wheel_cy``.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence

__all__ = ["FIRST", "MAIN", "MOST_HITS", "NEGATIVE", "SMALL", "STALE", "EvictionOrder"]

MAIN = 0
SMALL = 1
STALE = 2
NEGATIVE = 3
MOST_HITS = 3  # that S3-FIFO counts
FIRST = 4  # slots below are the heads of the queues

# C variables in the compiled module, not visible from Python
_MAIN = MAIN
_SMALL = SMALL
_STALE = STALE
_NEGATIVE = NEGATIVE
_QUEUES = 4
_MOST_HITS = MOST_HITS
_HITS_TO_STAY = 1
_SMALL_SHARE = 10  # of the room, to begin with
_SMALL_LEAST = 100
_SMALL_MOST = 2
_NEGATIVE_SHARE = 16
_YOUNG_SHARE = 10
_REFILL_SHARE = 4  # main is filled again when it has lost as much
_WAYS = 4
_FROM_MAIN = 2**31  # in a ghost: the queue
_LOW31 = 2**31 - 1
_NO_LIMIT = 2**63 - 1


class EvictionOrder:
    """The queues, over slots numbered from :data:`FIRST`.

    Args:
        capacity: how many slots, those below :data:`FIRST` included.
        s3fifo: S3-FIFO; else LRU.
        maxsize: how many entries there is room for, which sets the shares; 2^63 - 1: no limit.
        max_bytes: how many bytes, likewise.

    Attributes:
        count: entries in all queues.
        bytes: their sizes, added up.
    """

    __slots__ = (
        "_bytes",
        "_counts",
        "_evicted_from_main",
        "_evicted_from_small",
        "_full",
        "_ghosts",
        "_hits",
        "_links",
        "_max_bytes",
        "_maxsize",
        "_negative_bytes",
        "_negative_count",
        "_newest",
        "_queues",
        "_rows",
        "_s3fifo",
        "_sizes",
        "_small_bytes",
        "_small_count",
        "bytes",
        "count",
    )

    _links: MutableSequence[int]
    _sizes: MutableSequence[int]
    _queues: MutableSequence[int]
    _hits: MutableSequence[int]
    _ghosts: MutableSequence[int]

    def __init__(self, capacity: int, s3fifo: bool, maxsize: int, max_bytes: int) -> None:
        self._s3fifo = s3fifo
        self._maxsize = maxsize
        self._max_bytes = max_bytes
        self._small_count = _share_of(maxsize, _SMALL_SHARE)
        self._small_bytes = _share_of(max_bytes, _SMALL_SHARE)
        self._negative_count = _share_of(maxsize, _NEGATIVE_SHARE)
        self._negative_bytes = _share_of(max_bytes, _NEGATIVE_SHARE)
        self._links = array("i", [0]) * (2 * capacity)
        self._sizes = array("q", [0]) * capacity
        self._queues = array("B", [0]) * capacity
        self._hits = array("B", [0]) * capacity
        self._counts = array("q", [0]) * _QUEUES
        self._bytes = array("q", [0]) * _QUEUES
        self._rows = _ghost_rows(capacity) if s3fifo else 1
        self._ghosts = array("Q", [0]) * (_WAYS * self._rows)
        self._evicted_from_small = 2**30  # far from 0, which is an empty place
        self._evicted_from_main = 2**30
        self._full = False
        self._newest = 0
        self.count = 0
        self.bytes = 0
        for place in range(2 * _QUEUES):
            self._links[place] = place // 2

    def grow(self, capacity: int) -> None:
        """Makes room for more slots; fewer than there are change nothing."""
        links = array("i", [0]) * (2 * capacity)
        sizes = array("q", [0]) * capacity
        queues = array("B", [0]) * capacity
        hits = array("B", [0]) * capacity
        ghosts = array("Q", [0]) * (_WAYS * (_ghost_rows(capacity) if self._s3fifo else 1))
        self._move(links, sizes, queues, hits, ghosts)

    def _move(
        self,
        links: MutableSequence[int],
        sizes: MutableSequence[int],
        queues: MutableSequence[int],
        hits: MutableSequence[int],
        ghosts: MutableSequence[int],
    ) -> None:
        # typed arguments: the views exist before the first look at the old arrays
        held = len(self._sizes)
        if len(sizes) <= held:
            return
        links[: 2 * held] = self._links
        sizes[:held] = self._sizes
        queues[:held] = self._queues
        hits[:held] = self._hits
        self._links = links
        self._sizes = sizes
        self._queues = queues
        self._hits = hits
        if len(ghosts) > len(self._ghosts):
            old = self._ghosts
            self._ghosts = ghosts
            self._rows = len(ghosts) // _WAYS
            for place in range(len(old)):
                if old[place]:
                    self._haunt(old[place])

    def add(self, slot: int, size: int, mixed: int) -> None:
        """A newcomer, as the newest of the queue that it belongs to.

        Args:
            slot: in no queue.
            size: its bytes.
            mixed: its hash, well mixed, 63 bits; S3-FIFO knows by it who comes back.
        """
        if self._s3fifo and not self._remembers(mixed):
            self._enter(slot, size, _SMALL)
        else:
            self._enter(slot, size, _MAIN)
        self._newest = slot

    def add_negative(self, slot: int, size: int) -> None:
        """A remembered failure."""
        self._enter(slot, size, _NEGATIVE)

    def remove(self, slot: int) -> None:
        """Takes a slot out of its queue."""
        self._unlink(slot)
        queue = self._queues[slot]
        size = self._sizes[slot]
        self._counts[queue] -= 1
        self._bytes[queue] -= size
        self.count -= 1
        self.bytes -= size

    def touch(self, slot: int) -> None:
        """A hit."""
        if self._s3fifo:
            if self._hits[slot] < _MOST_HITS:
                self._hits[slot] += 1
        elif self._links[0] != slot and self._queues[slot] == _MAIN:
            self._unlink(slot)
            self._link(slot, _MAIN)

    def resize(self, slot: int, size: int) -> None:
        """Another size for a slot, whose value was replaced."""
        more = size - self._sizes[slot]
        self._sizes[slot] = size
        self._bytes[self._queues[slot]] += more
        self.bytes += more
        self._newest = slot

    def set_aside(self, slot: int) -> None:
        """An entry that is stale from now on."""
        size = self._sizes[slot]
        self.remove(slot)
        self._enter(slot, size, _STALE)

    def victim(self, alive: bool) -> int:
        """Who goes next; takes nothing out, but moves on those that stay.

        Args:
            alive: only of the entries that are fresh.

        Returns:
            A slot; -1: there is none.
        """
        if not alive:
            if self._counts[_STALE]:
                return self._links[2 * _STALE + 1]
            if self._counts[_NEGATIVE] and (
                self._counts[_NEGATIVE] > self._negative_count
                or self._bytes[_NEGATIVE] > self._negative_bytes
                or self._counts[_MAIN] + self._counts[_SMALL] <= 1
            ):
                return self._links[2 * _NEGATIVE + 1]
        if not self._s3fifo:
            return self._links[1] if self._counts[_MAIN] else -1
        return self._victim_of_two()

    def _victim_of_two(self) -> int:
        while self._counts[_SMALL] + self._counts[_MAIN]:
            over = self._counts[_SMALL] > 1 and (
                self._counts[_SMALL] > self._small_count or self._bytes[_SMALL] > self._small_bytes
            )
            oldest = self._links[2 * _MAIN + 1]
            if over or self._counts[_MAIN] == 0 or (oldest == self._newest and self._counts[_MAIN] == 1):
                slot = self._links[2 * _SMALL + 1]
                if self._counts[_SMALL] == 0:
                    return oldest  # there is no other
                if self._hits[slot] < _HITS_TO_STAY and not (over and self._fills_main()):
                    return slot
                if self._counts[_SMALL] + self._counts[_MAIN] == 1:
                    return slot
                self._hits[slot] = 0
                self._pass_on(slot)
            else:
                if self._hits[oldest] == 0 and oldest != self._newest:
                    return oldest
                if self._hits[oldest]:
                    self._hits[oldest] -= 1
                self._pass_on(oldest)
        return -1

    def _fills_main(self) -> bool:
        """Whether main is still to be filled; the room for it is what small and the failures leave."""
        full = False
        hollow = True
        if self._maxsize != _NO_LIMIT:
            room = self._maxsize - self._small_count - self._counts[_NEGATIVE]
            full = self._counts[_MAIN] >= room
            hollow = self._counts[_MAIN] < room - room // _REFILL_SHARE
        if self._max_bytes != _NO_LIMIT:
            room = self._max_bytes - self._small_bytes - self._bytes[_NEGATIVE]
            full = full or self._bytes[_MAIN] >= room
            hollow = hollow and self._bytes[_MAIN] < room - room // _REFILL_SHARE
        if full:
            self._full = True
        elif hollow:
            self._full = False
        return not self._full

    def evicted(self, slot: int, mixed: int) -> None:
        """Notes, before a victim is removed, that it goes for lack of room."""
        if not self._s3fifo:
            return
        ghost = (mixed >> 31) << 32
        if self._queues[slot] == _SMALL:
            self._evicted_from_small += 1
            self._haunt(ghost | (self._evicted_from_small & _LOW31))
        elif self._queues[slot] == _MAIN:
            self._evicted_from_main += 1
            self._haunt(ghost | _FROM_MAIN | (self._evicted_from_main & _LOW31))

    def queue_of(self, slot: int) -> int:
        """The queue that a slot is in."""
        return self._queues[slot]

    def size_of(self, slot: int) -> int:
        """The bytes of a slot."""
        return self._sizes[slot]

    def held(self, queue: int) -> int:
        """How many entries a queue has."""
        return self._counts[queue]

    def bytes_in(self, queue: int) -> int:
        """The bytes of a queue."""
        return self._bytes[queue]

    def newer_than(self, slot: int) -> int:
        """The next newer entry; from the number of a queue to its oldest, and after its newest to that number again."""
        return self._links[2 * slot + 1]

    def _enter(self, slot: int, size: int, queue: int) -> None:
        self._sizes[slot] = size
        self._queues[slot] = queue
        self._hits[slot] = 0
        self._counts[queue] += 1
        self._bytes[queue] += size
        self.count += 1
        self.bytes += size
        self._link(slot, queue)

    def _pass_on(self, slot: int) -> None:
        """To the newest end of main."""
        queue = self._queues[slot]
        size = self._sizes[slot]
        self._counts[queue] -= 1
        self._bytes[queue] -= size
        self._counts[_MAIN] += 1
        self._bytes[_MAIN] += size
        self._unlink(slot)
        self._queues[slot] = _MAIN
        self._link(slot, _MAIN)

    def _link(self, slot: int, queue: int) -> None:
        newest = self._links[2 * queue]
        self._links[2 * slot] = newest
        self._links[2 * slot + 1] = queue
        self._links[2 * newest + 1] = slot
        self._links[2 * queue] = slot

    def _unlink(self, slot: int) -> None:
        older = self._links[2 * slot]
        newer = self._links[2 * slot + 1]
        self._links[2 * older + 1] = newer
        self._links[2 * newer] = older

    def _remembers(self, mixed: int) -> bool:
        """Whether who comes back goes to main at once. Its ghost votes, if it is young, and is gone."""
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
        """How many went from the same queue since."""
        evicted = self._evicted_from_main if ghost & _FROM_MAIN else self._evicted_from_small
        return (evicted - ghost) & _LOW31

    def _move_border(self, entries: int) -> None:
        """Between small and main."""
        if self._maxsize != _NO_LIMIT:
            self._small_count = _between(
                _share_of(self._maxsize, _SMALL_LEAST),
                self._small_count + entries,
                _share_of(self._maxsize, _SMALL_MOST),
            )
        if self._max_bytes != _NO_LIMIT and self.count:
            self._small_bytes = _between(
                _share_of(self._max_bytes, _SMALL_LEAST),
                self._small_bytes + entries * (self.bytes // self.count),
                _share_of(self._max_bytes, _SMALL_MOST),
            )

    def _haunt(self, ghost: int) -> None:
        """Writes a ghost over the one of its row with the least to live."""
        row = _WAYS * (((ghost >> 32) * self._rows) >> 32)
        chosen = row
        least = _NO_LIMIT
        for place in range(row, row + _WAYS):
            held = self._ghosts[place]
            if held == 0:
                chosen = place
                break
            left = (self.count // _YOUNG_SHARE if held & _FROM_MAIN else self.count) - self._age(held)
            if left < least:
                least = left
                chosen = place
        self._ghosts[chosen] = ghost


def _share_of(limit: int, share: int) -> int:
    """A part of a limit, at least 1; no limit has no part."""
    if limit == _NO_LIMIT:
        return limit
    return limit // share if limit >= share else 1


def _between(least: int, number: int, most: int) -> int:
    return least if number < least else most if number > most else number


def _ghost_rows(capacity: int) -> int:
    """As many rows as make half as many places again as there are slots."""
    return (3 * capacity + 2 * _WAYS - 1) // (2 * _WAYS)
