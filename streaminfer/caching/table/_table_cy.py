# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, infer_types=True
"""Table of a cache: its operations.

*Design.* The table is a set of slots, none of which is a Python object. An entry takes about 90 bytes, where a
dictionary of objects takes 200, and the garbage collector has nothing to walk. `Entries` (``_entries_cy``) makes the
changes and describes the parts.

An entry is fresh until its instant, then stale for ``stale_ns``, then removed. A negative entry, a remembered failure,
is removed at its instant. The mapping's methods find and count only fresh entries; the limits apply to all entries.

*Complexity.* Operations are O(1) amortized, except ``clear``, ``erase_labeled`` and the snapshots, which are linear.

One source, compiled with the C types of ``_table_cy.pxd`` or run as plain Python. The directives above are safe,
because every index is a slot that the table itself assigned.
"""

from typing import Any

from streaminfer.caching.table._entries_cy import NO_LIMIT, Entries, Labels
from streaminfer.caching.table._slots_cy import FIRST, MAIN, NEGATIVE, NEVER, SMALL, STALE
from streaminfer.caching.weigher import payload_bytes

__all__ = ["EdgeTable"]

ERASED = "erased"
_ABSENT: Any = object()

# C variables in the compiled module, not visible from Python
_IS_MISSING = 0
_IS_FRESH = 1
_IS_STALE = 2
_IS_FAILURE = 3
_IS_OUTDATED = 4
_SMALL_PAYLOAD = 32


class EdgeTable(Entries):
    """Entries by key, with lookups and snapshots. The arguments are those of `Entries`."""

    # -- the mapping --------------------------------------------------------------------------------------------

    def _get(self, key: Any, default: Any) -> Any:
        value = EdgeTable.hit(self, key, _ABSENT)  # not `self.hit`, which looks for a method of a subclass first
        if value is _ABSENT:
            self.misses += 1
            return default
        return value

    def hit(self, key: Any, default: Any) -> Any:
        """Return the fresh value of a key, which counts as a hit; else ``default``, which counts as nothing."""
        slot = self._find_fresh(key)
        if slot < 0:
            return default
        self.hits += 1
        self._order.touch(slot)
        return self._index.objects[3 * slot + 1]

    def _has(self, key: Any) -> bool:
        return self._find_fresh(key) >= 0

    def _set(self, key: Any, value: Any) -> None:
        self._store(key, value, self._ttl_ns, _payload(value), None, False, NO_LIMIT)

    def peek(self, key: Any, default: Any = None) -> Any:
        """Return the fresh value of a key, without counting a lookup or a use."""
        slot = self._find_fresh(key)
        return default if slot < 0 else self._index.objects[3 * slot + 1]

    def take(self, key: Any, default: Any) -> Any:
        """Remove a fresh entry and return its value, or ``default`` if there is none; does not count as a use.

        A computation in flight for the key is not stored, even if there is no entry.
        """
        self._deleted(hash(key))
        slot = self._find_fresh(key)
        return default if slot < 0 else self._take(slot, None)

    def discard(self, key: Any) -> bool:
        """Remove the entry of a key: fresh, stale or a failure; a computation in flight for it is not stored.

        Returns:
            Whether there was an entry.
        """
        self._deleted(hash(key))
        slot = self._index.find(key, hash(key))
        if slot < 0:
            return False
        self._take(slot, None)
        return True

    def overtake(self, key: Any) -> None:
        """Forbid storing a computation or tier read in flight for a key, because a newer value follows."""
        self._deleted(hash(key))

    def count_fresh(self) -> int:
        """Return the number of fresh entries."""
        self._settle()
        return self._order.count_in(MAIN) + self._order.count_in(SMALL)

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return the fresh entry that would be evicted next."""
        self._settle()
        slot = self._order.victim(True)
        if slot < 0:
            raise KeyError("the cache is empty")
        key = self._index.objects[3 * slot]
        value = self._take(slot, None)
        self._deleted(hash(key))
        return key, value

    def clear(self) -> None:
        """Remove all entries and ghosts, and release the memory."""
        self.erasures += 1
        self._all_erased = self.erasures
        old_objects = self._begin()
        self.removed = self.inserted - self.evicted - self.expired - self.erased  # no entry is left
        self._note(None, None, old_objects, None)

    def setdefault(self, key: Any, default: Any = None, ttl_ns: int = -1, labels: Labels = None) -> Any:
        """Return the fresh value of a key, which counts as a use; else store ``default`` and return it.

        Args:
            key: hashable.
            default: anything.
            ttl_ns: how long ``default`` is fresh; negative: the table's default.
            labels: of ``default``, as for :meth:`store`.
        """
        size = _payload(default)
        value = self._get(key, _ABSENT)
        if value is not _ABSENT:
            return value
        self._store(key, default, self._ttl_ns if ttl_ns < 0 else ttl_ns, size, labels, False, NO_LIMIT)
        return default

    # -- beyond a mapping ---------------------------------------------------------------------------------------

    def store(self, key: Any, value: Any, ttl_ns: int, size: int, labels: Labels, erasures: int = NO_LIMIT) -> bool:
        """Store a value.

        Args:
            key: hashable.
            value: anything.
            ttl_ns: how long it is fresh; negative: the table's default.
            size: its bytes; negative: measured.
            labels: subject and tags, plain strings.
            erasures: an earlier value of ``erasures``; nothing is stored if the key may have been erased or deleted
                since.

        Returns:
            Whether it was stored. A value larger than the whole table is not stored; the key's old entry is removed.
        """
        size = _payload(value) if size < 0 else size
        return self._store(key, value, self._ttl_ns if ttl_ns < 0 else ttl_ns, size, labels, False, erasures)

    def store_negative(self, key: Any, value: Any, ttl_ns: int, labels: Labels, erasures: int = NO_LIMIT) -> bool:
        """Remember a failure, unless the key has a fresh or stale value or ``ttl_ns`` is 0."""
        return ttl_ns > 0 and self._store(key, value, ttl_ns, _payload(value), labels, True, erasures)

    def lookup(self, key: Any, now_ns: int) -> tuple[int, Any, int]:
        """Look up the entry of a key at an instant.

        Returns:
            A state, a value and, unless it is fresh, the instant until which it can be used. The state and the value
            are 1 and the fresh value; 2 and the stale value; 4 and the outdated value (stale, past ``revalidate_ns``);
            3 and the remembered failure; or 0 and ``None``. Counts as a hit (1), a stale hit (2 and 4), a negative hit
            (3) or a miss (0).
        """
        slot = self._index.find(key, hash(key))
        if slot >= 0:
            queue = self._slots._words[4 * slot] & 3
            at_ns = self._slots._words[4 * slot + 1]
            if queue <= SMALL:
                if now_ns < at_ns:
                    self.hits += 1
                    self._order.touch(slot)
                    return _IS_FRESH, self._index.objects[3 * slot + 1], 0
                at_ns += self._stale_ns  # it has expired, but was not moved to the stale entries yet
            if now_ns < at_ns:
                if queue == NEGATIVE:
                    self.negative_hits += 1
                    return _IS_FAILURE, self._index.objects[3 * slot + 1], at_ns
                self.stale_hits += 1
                is_outdated = now_ns >= at_ns - self._stale_ns + self.revalidate_ns
                return _IS_OUTDATED if is_outdated else _IS_STALE, self._index.objects[3 * slot + 1], at_ns
        self.misses += 1
        return _IS_MISSING, None, 0

    def expire(self) -> int:
        """Free every entry whose time, stale time included, has passed; return how many were freed."""
        return self._settle()

    def expire_due(self, now_ns: int, limit: int) -> int:
        """Free at most about ``limit`` entries whose time has passed.

        Returns:
            The instant of the next call: ``now_ns`` if more are due, ``NEVER`` if no entry expires.
        """
        self._expire(now_ns, limit)
        if self._events:
            self._deliver_events()
        if self._order.count == 0:
            return NEVER
        due_ns = self._expiries.due_ns
        return now_ns if due_ns < now_ns else due_ns

    def erase_labeled(self, subject: str | None, tag: str | None) -> int:
        """Remove every entry of a subject or with a tag: fresh, stale or negative; return how many were removed."""
        self._settle()
        self._deleted(subject if tag is None else tag)
        freed: list[Any] = []
        count = 0
        for slot in range(FIRST, self._index.top):
            labels = self._index.objects[3 * slot + 2]
            if labels is not None and _matches(labels, subject, tag):
                self._remove(slot, ERASED, freed)
                self.erased += 1
                count += 1
        if self._events:
            self._deliver_events()
        return count

    def erased_since(self, key: Any, labels: Labels, erasures: int) -> bool:
        """Return whether a key with labels may have been erased or deleted since ``erasures`` had that value."""
        return erasures < self._edition(hash(key), labels)

    def edition(self, key: Any, labels: Labels) -> int:
        """Return what ``erasures`` became at the latest possible erasure or deletion of a key with labels; 0: never."""
        return self._edition(hash(key), labels)

    def snapshot(self, with_values: bool) -> tuple[list[Any], list[Any]]:
        """Return the keys of fresh entries, and values if ``with_values``; the next victim of each queue first."""
        self._settle()
        keys: list[Any] = []
        values: list[Any] = []
        for queue in range(SMALL, MAIN - 1, -1):
            slot = self._order.newer_than(queue)
            while slot != queue:
                keys.append(self._index.objects[3 * slot])
                if with_values:
                    values.append(self._index.objects[3 * slot + 1])
                slot = self._order.newer_than(slot)
        return keys, values

    def contents(self) -> list[Any]:
        """Return labels, value, instant and queue (``_slots_cy``) of every slot, one after another.

        Due entries are not freed first, so that a proof sees entries that should have been removed.
        """
        items: list[Any] = []
        for slot in range(FIRST, self._index.top):
            labels = self._index.objects[3 * slot + 2]
            if labels is not None or self._index.objects[3 * slot] is not None:
                items.append(labels)
                items.append(self._index.objects[3 * slot + 1])
                items.append(self._slots._words[4 * slot + 1])
                items.append(self._slots._words[4 * slot] & 3)
        return items

    def counters(self) -> tuple[int, ...]:
        """Return the counters of `CacheStatistics`, in its order, at one moment."""
        self._settle()
        order = self._order
        return (
            order.count_in(MAIN) + order.count_in(SMALL),
            order.bytes_in(MAIN) + order.bytes_in(SMALL),
            order.count_in(STALE),
            order.count_in(NEGATIVE),
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
            self.rejected,
            self.events_lost,
        )

    def drain(self) -> list[Any]:
        """Return the events noted since the last call; each is four items: kind, key, value and labels."""
        empty: list[Any] = []
        events = self._events
        self._events = empty
        return events


def _payload(value: Any) -> int:
    """Return the bytes of a value: common types directly, others by ``weigher``."""
    kind = type(value)
    if kind is bytes:
        return len(value)
    if kind is int or kind is float or kind is bool or value is None:
        return _SMALL_PAYLOAD
    return payload_bytes(value)


def _matches(labels: tuple[str | None, tuple[str, ...]], subject: str | None, tag: str | None) -> bool:
    return (subject is not None and labels[0] == subject) or (tag is not None and tag in labels[1])
