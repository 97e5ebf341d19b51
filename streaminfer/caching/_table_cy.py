# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, infer_types=True
"""The table behind `EdgeCache`: what is kept, under which key, until when, and who goes for whom.

The idea: four views of one set of slots, none of which is a Python object per entry.

* *Where is it?* An open-addressed index of 64-bit words, linear probing, at most five eighths full: 32 bits of the slot
  and 31 bits of the hash, so that a miss looks at nothing but the index. Removal moves the ones behind it back; there
  are no tombstones. Hashes are mixed (Fibonacci hashing), since those of integers are the integers.
* *What is it?* One list: key, value, labels, key, value, labels, ...
* *Until when?* An exact timing wheel (``_wheel_cy``).
* *Who goes next?* The queues of LRU or S3-FIFO (``_eviction_cy``).

That makes about 90 bytes an entry where a dictionary of objects takes 200, and nothing for the garbage collector to
walk: neither the table nor its list is tracked. The price: a cycle that leads through a cached value back to its own
cache is not collected. Remove the entry, or ``clear``.

An entry is *fresh* until its instant, then *stale* for ``stale_ns``, then gone; or it is *negative*, a remembered
failure, until its instant. Only fresh entries are counted and found by the mapping's methods; limits bound all that are
held. Room is made in this order: what is due to go, stale entries, negative ones beyond their share, then fresh ones.

**Re-entrancy and threads.** An ``__eq__`` of a key, a ``__del__`` of a value and a clock are Python and may use the
same table. So an operation asks for the hash, the clock and memory first; then looks for the key, and looks again if
the table changed while ``__eq__`` ran (``_version``); then makes all its changes without calling Python, dropping a
reference or allocating anything that the garbage collector tracks; and frees what went last. Under the interpreter
lock that makes every compiled operation atomic. Run uncompiled, or without that lock, `EdgeCache` puts a lock around
each.

Cost: every operation O(1) amortised, but for ``clear``, ``erase`` and the snapshots, which are linear.

One source, compiled with the C types of ``_table_cy.pxd`` or run as it is. The directives above are safe: indexes are
slots that the table gave out itself.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, MutableSequence
from typing import Any

from streaminfer.caching._eviction_cy import FIRST, MAIN, MOST_HITS, NEGATIVE, SMALL, STALE, EvictionOrder
from streaminfer.caching._wheel_cy import NEVER, ExpiryWheel
from streaminfer.caching.sizing import payload_bytes

__all__ = [
    "ERASED",
    "EVICTED",
    "EXPIRED",
    "FAILURE",
    "FRESH",
    "MISSING",
    "NO_LIMIT",
    "STALE_VALUE",
    "EdgeTable",
]

NO_LIMIT = 2**63 - 1
MISSING = 0
FRESH = 1
STALE_VALUE = 2
FAILURE = 3
EVICTED = "evicted"
EXPIRED = "expired"
ERASED = "erased"

monotonic_ns = time.monotonic_ns
coarse_ns = time.monotonic_ns  # compiled: as of the kernel's last tick, a few ms ago, for a fifth of the time
untrack = id  # hides an object from the garbage collector, which only the compiled module can

# C variables in the compiled module, not visible from Python
_NEVER = NEVER
_NO_LIMIT = NO_LIMIT
_FIRST = FIRST
_MAIN = MAIN
_SMALL = SMALL
_STALE = STALE
_NEGATIVE = NEGATIVE
_MOST_HITS = MOST_HITS
_IS_MISSING = MISSING
_IS_FRESH = FRESH
_IS_STALE = STALE_VALUE
_IS_FAILURE = FAILURE
_MASK64 = 2**64 - 1
_MULTIPLIER = 0x9E3779B97F4A7C15
_LOW31 = 2**31 - 1
_LOW32 = 2**32 - 1
_AT_ONCE = 4  # due entries that one newcomer clears away: more than it adds, and no pause
_NEAR_NS = 1_000_000_000  # more than the coarse clock is ever late by: only what is left less needs the exact one
_SMALL_PAYLOAD = 32
_SMALLEST = 12
_LABELS = 3  # what a snapshot is of
_EVENTS_KEPT = 40_000  # four places each


class EdgeTable:
    """Entries by key. The arguments are taken as they are; `EdgeCache` checks them.

    Args:
        maxsize: how many entries it holds; :data:`NO_LIMIT`.
        max_bytes: how many bytes of values; :data:`NO_LIMIT`.
        ttl_ns: how long an entry is fresh unless it says so itself; ``NEVER``: for good.
        stale_ns: how long after that it is kept as stale.
        negative_ttl_ns: how long a failure is remembered; 0: not at all.
        s3fifo: S3-FIFO; else LRU.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: a C read of the monotonic clock.

    Attributes:
        erasures: changes whenever something is erased, deleted or cleared, or could have been.
        listening: whether what goes is noted for ``_tell``, which is then called.
        keeping: whether values that are replaced or removed are noted too, for who frees them under no lock.
        wake_ns: when somebody looks after expired entries next, so far as is known; an entry that goes earlier calls
            ``_wake``.
    """

    __slots__ = (
        "_capacity",
        "_events",
        "_free",
        "_hashes",
        "_index",
        "_mask",
        "_max_bytes",
        "_maxsize",
        "_negative_ttl_ns",
        "_objects",
        "_order",
        "_s3fifo",
        "_shift",
        "_stale_ns",
        "_top",
        "_ttl_ns",
        "_version",
        "_wheel",
        "clock",
        "erased",
        "erasures",
        "events_lost",
        "evicted",
        "expired",
        "hits",
        "inserted",
        "keeping",
        "listening",
        "misses",
        "negative_hits",
        "refused",
        "removed",
        "replaced",
        "stale_hits",
        "wake_ns",
    )

    _order: EvictionOrder
    _wheel: ExpiryWheel
    _hashes: MutableSequence[int]
    _index: MutableSequence[int]
    _objects: list[Any]

    def __init__(
        self,
        maxsize: int,
        max_bytes: int,
        ttl_ns: int,
        stale_ns: int,
        negative_ttl_ns: int,
        s3fifo: bool,
        clock: Callable[[], int] | None,
    ) -> None:
        self._maxsize = maxsize
        self._max_bytes = max_bytes
        self._ttl_ns = ttl_ns
        self._stale_ns = stale_ns
        self._negative_ttl_ns = negative_ttl_ns
        self._s3fifo = s3fifo
        self.clock = clock
        self._version = 0
        self._events: list[Any] = []
        self.listening = False
        self.keeping = False
        self.wake_ns = 0
        self.hits = 0
        self.misses = 0
        self.stale_hits = 0
        self.negative_hits = 0
        self.inserted = 0
        self.replaced = 0
        self.evicted = 0
        self.expired = 0
        self.erased = 0
        self.removed = 0
        self.refused = 0
        self.events_lost = 0
        self.erasures = 0
        self._build()

    # -- the mapping --------------------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None) -> Any:
        """The fresh value of a key, which counts as a use; else ``default``."""
        slot = _find_fresh(self, key)
        if slot < 0:
            self.misses += 1
            return default
        self.hits += 1
        _touch(self._order, slot)
        return self._objects[3 * slot + 1]

    def peek(self, key: Any, default: Any = None) -> Any:
        """The fresh value of a key; counts as nothing."""
        slot = _find_fresh(self, key)
        return default if slot < 0 else self._objects[3 * slot + 1]

    def __getitem__(self, key: Any) -> Any:
        slot = _find_fresh(self, key)
        if slot < 0:
            self.misses += 1
            raise KeyError(key)
        self.hits += 1
        _touch(self._order, slot)
        return self._objects[3 * slot + 1]

    def __contains__(self, key: Any) -> bool:
        return _find_fresh(self, key) >= 0

    def __setitem__(self, key: Any, value: Any) -> None:
        self._store(key, value, self._ttl_ns, _payload(value), None, False)

    def __delitem__(self, key: Any) -> None:
        slot = _find_fresh(self, key)
        if slot < 0:
            raise KeyError(key)
        self._take(slot)

    def take(self, key: Any, default: Any) -> Any:
        """Removes a fresh entry and returns its value; ``default`` where there is none. Counts as no use."""
        slot = _find_fresh(self, key)
        return default if slot < 0 else self._take(slot)

    def __len__(self) -> int:
        self._settle()
        return self._order.held(_MAIN) + self._order.held(_SMALL)

    def popitem(self) -> tuple[Any, Any]:
        """Removes and returns the fresh entry that would be evicted next."""
        self._settle()
        slot = self._order.victim(True)
        if slot < 0:
            raise KeyError("the cache is empty")
        key = self._objects[3 * slot]
        return key, self._take(slot)

    def clear(self) -> None:
        """Removes everything, what the ghosts remember included, and gives the memory back."""
        objects = self._objects
        self.erasures += 1
        self._build()
        self._note(None, None, objects, None)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The fresh value of a key, which counts as a use; else stores ``default`` and returns it."""
        size = _payload(default)
        slot = _find_fresh(self, key)
        if slot < 0:
            self.misses += 1
            self._store(key, default, self._ttl_ns, size, None, False)
            return default
        self.hits += 1
        _touch(self._order, slot)
        return self._objects[3 * slot + 1]

    # -- what a mapping does not have ----------------------------------------------------------------------------

    def store(
        self, key: Any, value: Any, ttl_ns: int, size: int, labels: tuple[str | None, tuple[str, ...]] | None
    ) -> bool:
        """Keeps a value.

        Args:
            key: hashable.
            value: anything.
            ttl_ns: how long it is fresh; negative: as the table says.
            size: its bytes; negative: measured.
            labels: subject and tags, plain strings.

        Returns:
            Whether it was kept; larger than the whole table is not, and what was there before has gone.
        """
        return self._store(
            key, value, self._ttl_ns if ttl_ns < 0 else ttl_ns, _payload(value) if size < 0 else size, labels, False
        )

    def store_negative(
        self, key: Any, value: Any, ttl_ns: int, labels: tuple[str | None, tuple[str, ...]] | None
    ) -> bool:
        """Remembers a failure, unless a fresh or stale value is there; ``ttl_ns`` negative: as the table says."""
        lasts_ns = self._negative_ttl_ns if ttl_ns < 0 else ttl_ns
        if lasts_ns <= 0:
            return False
        return self._store(key, value, lasts_ns, _payload(value), labels, True)

    def lookup(self, key: Any, now_ns: int) -> tuple[int, Any]:
        """What there is under a key at an instant.

        Returns:
            :data:`FRESH` or :data:`STALE_VALUE` and the value, :data:`FAILURE` and what was remembered, or
            :data:`MISSING` and ``None``; counted as a hit, a stale hit, a negative hit or a miss.
        """
        slot = _find(self, key, _mixed(key))
        if slot >= 0:
            queue = self._order._queues[slot]
            at_ns = self._wheel._at[slot]
            if queue <= _SMALL and now_ns < at_ns:
                self.hits += 1
                self._order.touch(slot)
                return _IS_FRESH, self._objects[3 * slot + 1]
            if queue == _NEGATIVE:
                if now_ns < at_ns:
                    self.negative_hits += 1
                    return _IS_FAILURE, self._objects[3 * slot + 1]
            elif now_ns < at_ns or (queue <= _SMALL and now_ns - at_ns < self._stale_ns):
                self.stale_hits += 1
                return _IS_STALE, self._objects[3 * slot + 1]
        self.misses += 1
        return _IS_MISSING, None

    def expire(self) -> int:
        """Frees every entry that is past its time, the stale time included.

        Returns:
            How many went.
        """
        return self._settle()

    def sweep(self, now_ns: int, limit: int) -> int:
        """Like :meth:`expire`, but at most about ``limit`` entries at once.

        Returns:
            When to come again: ``now_ns`` if more are due, ``NEVER`` if none ever is.
        """
        self._sweep(now_ns, limit)
        if self._events:
            self._tell()
        due_ns = self._wheel.due_ns
        return now_ns if due_ns < now_ns else due_ns

    def erase_labelled(self, subject: str | None, tag: str | None) -> int:
        """Removes every entry of a subject or with a tag: fresh, stale or negative.

        Args:
            subject: whose; ``None``: not asked.
            tag: which; ``None``: not asked.

        Returns:
            How many went.
        """
        self._settle()
        self.erasures += 1
        gone: list[Any] = []
        count = 0
        for slot in range(_FIRST, self._top):
            labels = self._objects[3 * slot + 2]
            if labels is not None and _matches(labels, subject, tag):
                gone.append(self._objects[3 * slot])
                gone.append(self._objects[3 * slot + 1])
                self._note(ERASED, self._objects[3 * slot], self._objects[3 * slot + 1], labels)
                self._detach(slot)
                self._vacate(slot)
                self.erased += 1
                count += 1
        if self._events:
            self._tell()
        return count

    def snapshot(self, what: int) -> list[Any]:
        """What the table holds, the next to be evicted of each queue first.

        Args:
            what: 0 keys of the fresh entries, 1 their values, 2 both in turn; 3 labels (``None`` where an entry has
                none) and state in turn, of every entry: :data:`FRESH`, :data:`STALE_VALUE` or :data:`FAILURE`.
        """
        self._settle()
        found: list[Any] = []
        if what == _LABELS:
            for queue in range(_MAIN, _NEGATIVE + 1):
                slot = self._order.newer_than(queue)
                while slot != queue:
                    found.append(self._objects[3 * slot + 2])
                    found.append(_IS_FAILURE if queue == _NEGATIVE else _IS_STALE if queue == _STALE else _IS_FRESH)
                    slot = self._order.newer_than(slot)
            return found
        for queue in range(_SMALL, _MAIN - 1, -1):
            slot = self._order.newer_than(queue)
            while slot != queue:
                if what != 1:
                    found.append(self._objects[3 * slot])
                if what != 0:
                    found.append(self._objects[3 * slot + 1])
                slot = self._order.newer_than(slot)
        return found

    def counters(self) -> tuple[int, ...]:
        """Every number of ``CacheStatistics``, in its order, of one moment."""
        self._settle()
        order = self._order
        return (
            order.held(_MAIN) + order.held(_SMALL),
            order.bytes_in(_MAIN) + order.bytes_in(_SMALL),
            order.held(_STALE),
            order.held(_NEGATIVE),
            order.bytes,
            self.hits,
            self.misses,
            self.stale_hits,
            self.negative_hits,
            self.inserted,
            self.replaced,
            self.evicted,
            self.expired,
            self.erased,
            self.removed,
            self.refused,
            self.events_lost,
        )

    def drain(self) -> list[Any]:
        """What was noted since the last call: kind, key, value and labels in turn."""
        fresh: list[Any] = []
        events = self._events
        self._events = fresh
        return events

    # -- for a subclass ------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Called when something was noted, the table being whole."""

    def _wake(self, at_ns: int) -> None:
        """Called when an entry came that goes before ``wake_ns``, the table being whole."""

    # -- inside --------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """An empty table; whatever was there before is whole until all the new is made."""
        capacity = _SMALLEST
        wheel = ExpiryWheel(capacity)
        order = EvictionOrder(capacity, self._s3fifo, self._maxsize, self._max_bytes)
        objects: list[Any] = [None] * (3 * capacity)
        untrack(objects)
        bits = _index_bits(capacity)
        before = self._take_over(wheel, order, objects, _numbers(capacity), _numbers(1 << bits), bits)
        self.removed += before

    def _take_over(
        self,
        wheel: ExpiryWheel,
        order: EvictionOrder,
        objects: list[Any],
        hashes: MutableSequence[int],
        index: MutableSequence[int],
        bits: int,
    ) -> int:
        # typed arguments: the views exist before anything is replaced
        before = self._order.count if self._version else 0
        self._version += 1
        self._wheel = wheel
        self._order = order
        self._objects = objects
        self._hashes = hashes
        self._index = index
        self._mask = (1 << bits) - 1
        self._shift = 63 - bits
        self._capacity = len(hashes)
        self._top = _FIRST
        self._free = -1
        return before

    def _read(self) -> int:
        return monotonic_ns() if self.clock is None else self.clock()

    def _store(  # noqa: C901, PLR0912 - the steps of one change of the table, between which nothing else may come
        self, key: Any, value: Any, ttl_ns: int, size: int, labels: Any, negative: bool
    ) -> bool:
        mixed = _mixed(key)
        now_ns = 0
        at_ns = _NEVER
        if ttl_ns != _NEVER or self._wheel.due_ns != _NEVER:
            now_ns = self._read()
            if ttl_ns != _NEVER:
                at_ns = now_ns + ttl_ns
        while True:
            slot = _find(self, key, mixed)
            if slot >= 0 or self._free >= 0 or self._top < self._capacity:
                break
            self._grow()
        # no Python from here to where the table is whole again
        if size > self._max_bytes:
            self.refused += 1
            if slot >= 0 and not negative:
                self._take(slot)
            return False
        before = None
        if slot >= 0:
            if negative and self._is_value(slot, now_ns):
                return False
            before = self._objects[3 * slot + 1]
            self._replace(slot, value, size, mixed, at_ns, labels, negative)
            self._note(None, key, before, None)
        else:
            self._insert(key, value, size, mixed, at_ns, labels, negative)
        # whole again
        if now_ns >= self._wheel.due_ns:
            self._sweep(now_ns, _AT_ONCE)
        if self._order.count > self._maxsize or self._order.bytes > self._max_bytes:
            self._make_room(now_ns)
        if at_ns < self.wake_ns:
            self.wake_ns = at_ns
            self._wake(at_ns)
        if self._events:
            self._tell()
        return True

    def _is_value(self, slot: int, now_ns: int) -> bool:
        """Whether a slot holds a value that is fresh or stale at an instant."""
        queue = self._order._queues[slot]
        if queue == _NEGATIVE:
            return False
        at_ns = self._wheel._at[slot]
        return now_ns < at_ns or (queue <= _SMALL and now_ns - at_ns < self._stale_ns)

    def _insert(self, key: Any, value: Any, size: int, mixed: int, at_ns: int, labels: Any, negative: bool) -> None:
        slot = self._free
        if slot >= 0:
            self._free = self._hashes[slot]
        else:
            slot = self._top
            self._top += 1
        self._version += 1
        self._objects[3 * slot] = key
        self._objects[3 * slot + 1] = value
        self._objects[3 * slot + 2] = labels
        self._hashes[slot] = mixed
        position = mixed >> self._shift
        while self._index[position]:
            position = (position + 1) & self._mask
        self._index[position] = (mixed & _LOW31) << 32 | slot
        if negative:
            self._order.add_negative(slot, size)
        else:
            self._order.add(slot, size, mixed)
        self._wheel.insert(slot, at_ns)
        self.inserted += 1

    def _replace(self, slot: int, value: Any, size: int, mixed: int, at_ns: int, labels: Any, negative: bool) -> None:
        """Another value for a key; the caller holds the one before."""
        self._objects[3 * slot + 1] = value
        self._objects[3 * slot + 2] = labels
        if negative or self._order._queues[slot] > _SMALL:
            self._order.remove(slot)
            if negative:
                self._order.add_negative(slot, size)
            else:
                self._order.add(slot, size, mixed)
        else:
            self._order.resize(slot, size)
            self._order.touch(slot)
        self._wheel.remove(slot)
        self._wheel.insert(slot, at_ns)
        self.replaced += 1

    def _detach(self, slot: int) -> None:
        """Out of the index, the wheel and the queues; what it refers to stays."""
        self._version += 1
        position = self._hashes[slot] >> self._shift
        while self._index[position] & _LOW32 != slot:
            position = (position + 1) & self._mask
        hole = position
        while True:
            position = (position + 1) & self._mask
            word = self._index[position]
            if word == 0:
                break
            home = self._hashes[word & _LOW32] >> self._shift
            if (position - home) & self._mask >= (position - hole) & self._mask:
                self._index[hole] = word
                hole = position
        self._index[hole] = 0
        self._order.remove(slot)
        self._wheel.remove(slot)

    def _vacate(self, slot: int) -> None:
        """A detached slot is free again; the caller holds what it referred to."""
        self._objects[3 * slot] = None
        self._objects[3 * slot + 1] = None
        self._objects[3 * slot + 2] = None
        self._hashes[slot] = self._free
        self._free = slot

    def _take(self, slot: int) -> Any:
        """Removes an entry and returns its value."""
        key = self._objects[3 * slot]
        value = self._objects[3 * slot + 1]
        self._detach(slot)
        self._vacate(slot)
        self.removed += 1
        self.erasures += 1
        self._note(None, key, value, None)
        return value

    def _make_room(self, now_ns: int) -> None:
        """Back within the limits: first who is due to go, then who is next."""
        key = None
        value = None
        gone: list[Any] | None = None
        several = False
        while self._order.count > self._maxsize or self._order.bytes > self._max_bytes:
            if now_ns >= self._wheel.due_ns:
                self._sweep(now_ns, _AT_ONCE)
                if now_ns >= self._wheel.due_ns:
                    continue
                if self._order.count <= self._maxsize and self._order.bytes <= self._max_bytes:
                    break
            if several and gone is None:
                gone = []
                continue  # the collector may have run for this list: look again
            slot = self._order.victim(False)
            if slot < 0:
                break
            if gone is None:
                several = True
                key = self._objects[3 * slot]
                value = self._objects[3 * slot + 1]
                self._note(EVICTED, key, value, self._objects[3 * slot + 2])
            else:
                gone.append(self._objects[3 * slot])
                gone.append(self._objects[3 * slot + 1])
                self._note(EVICTED, self._objects[3 * slot], self._objects[3 * slot + 1], self._objects[3 * slot + 2])
            self._order.evicted(slot, self._hashes[slot])
            self._detach(slot)
            self._vacate(slot)
            self.evicted += 1

    def _sweep(self, now_ns: int, limit: int) -> int:
        """Sees to at most ``limit`` entries that are due: they become stale, or go. Returns how many went."""
        if now_ns < self._wheel.due_ns:
            return 0
        gone: list[Any] = []
        count = 0
        while limit > 0:
            slot = self._wheel.pop_due(now_ns)
            if slot < 0:
                break
            limit -= 1
            if self._stale_ns > 0 and self._order._queues[slot] <= _SMALL:
                self._order.set_aside(slot)
                self._wheel.insert(slot, self._wheel.popped_ns + self._stale_ns)
                continue
            gone.append(self._objects[3 * slot])
            gone.append(self._objects[3 * slot + 1])
            self._note(EXPIRED, self._objects[3 * slot], self._objects[3 * slot + 1], self._objects[3 * slot + 2])
            self._detach(slot)
            self._vacate(slot)
            self.expired += 1
            count += 1
        return count

    def _settle(self) -> int:
        """Sees to all that is due, and tells. Returns how many went."""
        count = self._sweep(self._read(), _NO_LIMIT)
        if self._events:
            self._tell()
        return count

    def _note(self, kind: str | None, key: Any, value: Any, labels: Any) -> None:
        """Keeps what went for ``_tell``."""
        if self.keeping or (self.listening and kind is not None):
            if len(self._events) < _EVENTS_KEPT or self.keeping:
                self._events.append(kind)
                self._events.append(key)
                self._events.append(value)
                self._events.append(labels)
            else:
                self.events_lost += 1

    def _grow(self) -> None:
        """Room for more slots: a quarter more, never more than the limit needs."""
        version = self._version
        capacity = self._capacity + self._capacity // (1 if self._capacity < 1024 else 4)
        if self._maxsize < capacity - _FIRST - 1 and self._maxsize + _FIRST + 1 > self._capacity:
            capacity = self._maxsize + _FIRST + 1
        bits = _index_bits(capacity)
        self._wheel.grow(capacity)
        self._order.grow(capacity)
        objects: list[Any] = [None] * (3 * capacity)
        untrack(objects)
        self._spread(version, objects, _numbers(capacity), _numbers(1 << bits), bits)

    def _spread(
        self, version: int, objects: list[Any], hashes: MutableSequence[int], index: MutableSequence[int], bits: int
    ) -> None:
        if version != self._version:
            return  # somebody came while memory was asked for
        # typed arguments: the views exist before the first look at the old arrays
        for place in range(3 * self._capacity):
            objects[place] = self._objects[place]
        for slot in range(_FIRST, self._capacity):
            hashes[slot] = self._hashes[slot]
        self._mask = (1 << bits) - 1
        self._shift = 63 - bits
        for slot in range(_FIRST, self._top):  # every slot is taken, or nobody would have to grow
            position = hashes[slot] >> self._shift
            while index[position]:
                position = (position + 1) & self._mask
            index[position] = (hashes[slot] & _LOW31) << 32 | slot
        self._capacity = len(hashes)
        self._version += 1
        self._objects = objects
        self._hashes = hashes
        self._index = index


def _mixed(key: Any) -> int:
    """The hash of a key, spread over 63 bits."""
    return (((hash(key) & _MASK64) * _MULTIPLIER) & _MASK64) >> 1


def _payload(value: Any) -> int:
    """What a value weighs; the usual kinds at once, the others by ``sizing``."""
    kind = type(value)
    if kind is bytes:
        return len(value)
    if kind is int or kind is float or kind is bool or value is None:
        return _SMALL_PAYLOAD
    return payload_bytes(value)


def _matches(labels: tuple[str | None, tuple[str, ...]], subject: str | None, tag: str | None) -> bool:
    return (subject is not None and labels[0] == subject) or (tag is not None and tag in labels[1])


def _index_bits(capacity: int) -> int:
    """Of an index that is at most five eighths full, and at least half that but for the last few."""
    bits = 3
    while 5 << bits < 8 * capacity:
        bits += 1
    return bits


def _numbers(count: int) -> MutableSequence[int]:
    return array("q", [0]) * count


def _find_fresh(table: EdgeTable, key: Any) -> int:
    """The slot of a fresh entry; -1: there is none."""
    mixed = _mixed(key)
    now_ns = 0
    if table.clock is not None:
        now_ns = table.clock()
    slot = _find(table, key, mixed)
    if slot < 0:
        return -1
    at_ns = table._wheel._at[slot]
    if at_ns != _NEVER:
        if table.clock is not None:
            if now_ns >= at_ns:
                return -1
        elif at_ns - coarse_ns() < _NEAR_NS and monotonic_ns() >= at_ns:
            return -1
    return slot if table._order._queues[slot] <= _SMALL else -1


def _find(table: EdgeTable, key: Any, mixed: int) -> int:
    """The slot of a key, in whatever state; -1: there is none. The table is as it was when the last look began."""
    while True:
        held = None  # the last reference to a key may be dropped here, before the look begins
        version = table._version
        position = mixed >> table._shift
        while True:
            word = table._index[position]
            if word == 0:
                return -1
            if word >> 32 == mixed & _LOW31:
                slot = word & _LOW32
                held = table._objects[3 * slot]
                if held is key:
                    return slot
                if table._hashes[slot] == mixed:
                    same = held == key  # may be Python, and may use this table
                    if version != table._version:
                        break
                    if same:
                        return slot
            position = (position + 1) & table._mask


def _touch(order: EvictionOrder, slot: int) -> None:
    """``EvictionOrder.touch`` of a fresh entry, in this module since calls between compiled modules cost."""
    if order._s3fifo:
        if order._hits[slot] < _MOST_HITS:
            order._hits[slot] += 1
        return
    newest = order._links[0]
    if newest == slot:
        return
    older = order._links[2 * slot]
    newer = order._links[2 * slot + 1]
    order._links[2 * older + 1] = newer
    order._links[2 * newer] = older
    order._links[2 * slot] = newest
    order._links[2 * slot + 1] = _MAIN
    order._links[2 * newest + 1] = slot
    order._links[0] = slot
