# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, infer_types=True
"""Changes of the table of a cache, each as one atomic step.

*Design.* The parts are a record of each slot (``_slots_cy``), the index and the objects (``_index_cy``), the heap of
expiry instants (``_expiry_heap_cy``) and the queues of an eviction policy (``_eviction_cy``). `Entries` changes them
together and enforces the limits. To make room, it removes due entries first, then stale and negative entries beyond
their shares, then fresh ones.

*Re-entrancy and threads.* An ``__eq__`` of a key, a ``__del__`` of a value and a clock are Python code, which may use
the same table. An operation therefore has three phases. First it computes the hash, reads the clock and allocates
memory. Then it looks for the key, and looks again if the index changed while ``__eq__`` ran (``version``). Last it
makes all its changes without calling Python, dropping a reference or allocating anything that the garbage collector
tracks; it frees removed objects at the very end. Under the interpreter lock, every compiled operation is therefore
atomic. Otherwise ``_locking`` puts a lock around each.

*Clocks.* Reading the exact clock takes a fifth of a store. A time to live of a minute or more is therefore counted from
the kernel's last tick: it ends up to 10 ms early, never late. Shorter times, and entries that are due soon, use the
exact clock.

*Complexity.* Each change is O(1) amortized. One source, compiled with the C types of ``_entries_cy.pxd`` or run as
plain Python. The directives above are safe, because every index is a slot that the table itself assigned.
"""

import time
from typing import Any

from streaminfer.caching.table._eviction_cy import EvictionOrder
from streaminfer.caching.table._expiry_heap_cy import ExpiryHeap
from streaminfer.caching.table._index_cy import KeyIndex
from streaminfer.caching.table._slots_cy import FIRST, NEGATIVE, NEVER, SMALL, STALE, Slots
from streaminfer.protocols import Clock

__all__ = ["EVICTED", "EXPIRED", "NO_LIMIT", "REPLACED", "Entries", "Labels"]

NO_LIMIT = 2**63 - 1
EVICTED = "evicted"
EXPIRED = "expired"
REPLACED = "replaced"
# subject and tags; with a policy also the data class and the instant at which the response was computed
Labels = tuple[Any, ...] | None

monotonic_ns = time.monotonic_ns
coarse_ns = time.monotonic_ns  # compiled: the kernel's last tick, a few ms ago, read in a fifth of the time

# C variables in the compiled module, not visible from Python
_NO_LIMIT = NO_LIMIT
_EXPIRIES_PER_STORE = 4  # due entries that one store frees: more than it adds, few enough to cause no pause
_NEAR_NS = 1_000_000_000  # more than the coarse clock is ever late by; entries with less left need the exact clock
_LONG_NS = 60_000_000_000
_SMALLEST = 12
_STEPS = 8  # how much of a limit a step without a due entry uses
_SMALL_TABLE = 1024
_LARGE_TABLE = 8192  # from here on memory latency dominates
_MAX_EVENTS = 40_000  # four list items each
_MAX_DELETIONS = 4096


class Entries:
    """Entries by key. `EdgeCache` checks the arguments.

    Args:
        maxsize: most entries; or :data:`NO_LIMIT`.
        max_bytes: most bytes of values; or :data:`NO_LIMIT`.
        ttl_ns: default time for which an entry is fresh; ``NEVER``: for good.
        stale_ns: time after that for which an entry is stored as stale.
        policy: a subclass of `EvictionOrder`.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: a C read of the monotonic clock.

    Attributes:
        erasures: number of erasures, deletions and clearings so far; for ``erased_since``.
        listening: whether the table notes entries that leave, and calls ``_deliver_events`` to deliver them.
        keeping: whether it also notes replaced and removed values, so that they are freed without a lock.
        preserving: whether it notes replaced entries as ``REPLACED``, also those that a rejected value removes.
        revalidate_ns: part of the stale time for which a value is used while it is refreshed; by default all of it.
        wake_ns: instant at which due entries will be freed; a store of an entry that is due earlier calls ``wake``.
    """

    _index: KeyIndex
    _order: EvictionOrder
    _slots: Slots
    _expiries: ExpiryHeap

    def __init__(
        self, maxsize: int, max_bytes: int, ttl_ns: int, stale_ns: int, policy: type[EvictionOrder], clock: Clock | None
    ) -> None:
        self._maxsize = maxsize
        self._max_bytes = max_bytes
        self._ttl_ns = ttl_ns
        self._stale_ns = stale_ns
        self.revalidate_ns = stale_ns
        self._policy = policy
        self.clock = clock
        self._events: list[Any] = []
        self._all_erased = 0
        # by a key's hash, a subject or a tag: what `erasures` became at its latest deletion or erasure
        self._deletions: dict[Any, int] = {}
        self.listening = False
        self.keeping = False
        self.preserving = False
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
        self.rejected = 0
        self.events_lost = 0
        self.erasures = 0
        self._index = KeyIndex()
        self._begin()

    def now(self) -> int:
        """Return the current instant of the cache's clock in monotonic nanoseconds."""
        return self._read()

    # -- for a subclass ------------------------------------------------------------------------------------------

    def _deliver_events(self) -> None:
        """Deliver the noted events; called when the table is consistent."""

    def wake(self) -> None:
        """Note that ``wake_ns`` has become earlier; called when the table is consistent."""

    # -- inside --------------------------------------------------------------------------------------------------

    def _begin(self) -> Any:
        """Start empty, without ghosts; return the list that holds the old contents."""
        slots = Slots(_SMALLEST)
        expiries = ExpiryHeap(slots)
        order = self._policy(slots, self._maxsize, self._max_bytes)
        old_objects = self._index.begin(slots)
        self._slots = slots
        self._expiries = expiries
        self._order = order
        return old_objects

    def _find_fresh(self, key: Any) -> int:
        """Return the slot of the fresh entry of a key; -1 if there is none."""
        hashed = hash(key)
        now_ns = 0
        if self.clock is not None:
            now_ns = self.clock()
        slot = self._index.find(key, hashed)
        if slot < 0:
            return -1
        at_ns = self._slots._words[4 * slot + 1]
        if at_ns != NEVER:
            if self.clock is not None:
                if now_ns >= at_ns:
                    return -1
            elif at_ns - coarse_ns() < _NEAR_NS and monotonic_ns() >= at_ns:
                return -1
        return slot if self._slots._words[4 * slot] & 3 <= SMALL else -1

    def _read(self) -> int:
        return monotonic_ns() if self.clock is None else self.clock()

    def _read_for(self, ttl_ns: int) -> int:
        """Read the clock for a store: the coarse one if the time to live is long and no entry is due soon."""
        if self.clock is None and ttl_ns >= _LONG_NS:
            now_ns = coarse_ns()
            if self._expiries.due_ns - now_ns >= _NEAR_NS:
                return now_ns
        return self._read()

    def _store(  # noqa: C901, PLR0912, PLR0915 - the steps of one change of the table, between which nothing else may come
        self, key: Any, value: Any, ttl_ns: int, size: int, labels: Any, negative: bool, erasures: int
    ) -> bool:
        if self._slots.capacity >= _LARGE_TABLE and self._order.count >= self._maxsize:
            self._index.prefetch_key(self._order.predicted_victim())
        hashed = hash(key)
        now_ns = 0
        at_ns = NEVER
        if ttl_ns != NEVER or self._expiries.due_ns != NEVER:
            now_ns = self._read_for(ttl_ns)
            if ttl_ns != NEVER:
                at_ns = now_ns + ttl_ns
        while True:
            slot = self._index.find(key, hashed)
            if slot >= 0 or not self._index.is_full():
                break
            self._grow()
        # no call of Python from here until the table is consistent again
        if erasures != _NO_LIMIT and erasures < self._edition(hashed, labels):
            return False
        if size > self._max_bytes:
            self.rejected += 1
            if slot >= 0 and not negative:
                self._take(slot, REPLACED if self.preserving else None)
                self._deleted(hashed)
                if self._events:
                    self._deliver_events()
            return False
        before = None
        if slot < 0:
            slot = self._index.insert(key, value, labels, hashed)
            if negative:
                self._order.add_negative(slot, size)
            else:
                self._order.add(slot, size)
            self._expiries.set(slot, at_ns)
            self.inserted += 1
        elif negative and self._is_value(slot, now_ns):
            return False
        else:
            before = self._index.objects[3 * slot + 1]
            labels_before = self._index.objects[3 * slot + 2]
            self._index.objects[3 * slot + 1] = value
            self._index.objects[3 * slot + 2] = labels
            self._requeue(slot, size, negative)
            self._expiries.set(slot, at_ns)
            self.replaced += 1
            if self.preserving or self.keeping:
                self._note(REPLACED if self.preserving else None, key, before, labels_before)
        # consistent again
        if now_ns >= self._expiries.due_ns:
            self._expire(now_ns, _EXPIRIES_PER_STORE)
        if self._order.count > self._maxsize or self._order.bytes > self._max_bytes:
            self._make_room(now_ns)
        if at_ns < self.wake_ns:
            self.wake_ns = at_ns
            self.wake()
        if self._events:
            self._deliver_events()
        return True

    def _is_value(self, slot: int, now_ns: int) -> bool:
        """Return whether a slot has a fresh or stale value, not a failure, at an instant."""
        queue = self._slots._words[4 * slot] & 3
        if queue == NEGATIVE:
            return False
        at_ns = self._slots._words[4 * slot + 1]
        return now_ns < at_ns or (queue <= SMALL and now_ns - at_ns < self._stale_ns)

    def _requeue(self, slot: int, size: int, negative: bool) -> None:
        """Move a slot to the queue for its new value."""
        if not negative and self._slots._words[4 * slot] & 3 <= SMALL:
            self._order.renew(slot, size)
            return
        self._order.remove(slot)
        if negative:
            self._order.add_negative(slot, size)
        else:
            self._order.add(slot, size)

    def _drop(self, slot: int) -> None:
        """Remove an entry; the caller must hold references to its objects."""
        self._index.detach(slot)
        self._order.remove(slot)
        self._expiries.set(slot, NEVER)
        self._index.vacate(slot)

    def _remove(self, slot: int, kind: str, freed: list[Any]) -> None:
        """Remove an entry and note the reason; append its objects to ``freed``, so that they are freed last."""
        key = self._index.objects[3 * slot]
        value = self._index.objects[3 * slot + 1]
        labels = self._index.objects[3 * slot + 2]
        freed.append(key)
        freed.append(value)
        freed.append(labels)
        self._note(kind, key, value, labels)
        self._drop(slot)

    def _take(self, slot: int, kind: str | None) -> Any:
        """Remove an entry, note it as of a kind and return its value."""
        key = self._index.objects[3 * slot]
        value = self._index.objects[3 * slot + 1]
        labels = self._index.objects[3 * slot + 2]
        self._drop(slot)
        self.removed += 1
        self._note(kind, key, value, labels)
        return value

    def _deleted(self, target: Any) -> None:
        """Forbid storing a computation in flight for a key (by its hash), a subject or a tag.

        When there are too many deletions, they become one deletion of all keys.
        """
        self.erasures += 1
        if len(self._deletions) >= _MAX_DELETIONS:
            self._all_erased = self.erasures
            self._deletions = {}
        self._deletions[target] = self.erasures

    def _edition(self, hashed: int, labels: Any) -> int:
        """Return what ``erasures`` became when a key with labels was last erased or deleted; 0 if it never was."""
        latest: int = max(self._all_erased, self._deletions.get(hashed, 0))
        if labels is not None:
            latest = max(latest, self._deletions.get(labels[0], 0))
            tags = labels[1]
            for tag in tags:
                latest = max(latest, self._deletions.get(tag, 0))
        return latest

    def _make_room(self, now_ns: int) -> None:
        """Return within the limits: free due entries first, then evict victims.

        Afterwards start to load the memory of the next likely victim, so that the next store does not wait for it.
        """
        key = None
        value = None
        labels = None
        freed: list[Any] | None = None
        several = False
        while self._order.count > self._maxsize or self._order.bytes > self._max_bytes:
            if now_ns >= self._expiries.due_ns:
                self._expire(now_ns, _EXPIRIES_PER_STORE)
                continue
            if several and freed is None:
                freed = []
                continue  # allocating the list may have run the collector: check again
            slot = self._order.victim(False)
            if slot < 0:
                break
            if freed is not None:
                freed.append(key)
                freed.append(value)
                freed.append(labels)
            several = True
            key = self._index.objects[3 * slot]
            value = self._index.objects[3 * slot + 1]
            labels = self._index.objects[3 * slot + 2]
            if self.listening or self.keeping:
                self._note(EVICTED, key, value, labels)
            self._order.evicted(slot)
            self._drop(slot)
            self.evicted += 1
        if self._slots.capacity >= _LARGE_TABLE:
            slot = self._order.predicted_victim()
            self._index.prefetch(slot)
            self._order.prefetch(slot)

    def _expire(self, now_ns: int, limit: int) -> int:
        """Make at most ``limit`` due entries stale or remove them; return how many were removed."""
        if now_ns < self._expiries.due_ns:
            return 0
        freed: list[Any] = []
        count = 0
        while limit > 0:
            slot = self._expiries.pop_due(now_ns)
            if slot == -1:
                break
            if slot < 0:
                limit -= _STEPS
                continue
            limit -= 1
            if self._stale_ns > 0 and self._slots._words[4 * slot] & 3 <= SMALL:
                self._order.move(slot, STALE)
                self._expiries.set(slot, self._expiries.popped_ns + self._stale_ns)
                continue
            self._remove(slot, EXPIRED, freed)
            self.expired += 1
            count += 1
        return count

    def _settle(self) -> int:
        """Make all due entries stale or remove them, and deliver events; return how many were removed."""
        count = self._expire(self._read(), _NO_LIMIT)
        if self._events:
            self._deliver_events()
        return count

    def _note(self, kind: str | None, key: Any, value: Any, labels: Any) -> None:
        """Note an entry that left, for ``_deliver_events``; a kind of ``None`` is only freed."""
        if self.keeping or (self.listening and kind is not None):
            if len(self._events) < _MAX_EVENTS or self.keeping:
                self._events.append(kind)
                self._events.append(key)
                self._events.append(value)
                self._events.append(labels)
            else:
                self.events_lost += 1

    def _grow(self) -> None:
        """Make room for a quarter more slots, or twice as many in a small table, up to the limit."""
        previous = self._slots.capacity
        capacity = 2 * previous if previous < _SMALL_TABLE else previous + previous // 4
        if self._maxsize < capacity - FIRST - 1 and self._maxsize + FIRST + 1 > previous:
            capacity = self._maxsize + FIRST + 1
        version = self._index.version
        # local names, because Python code that runs during allocation may replace these attributes
        expiries = self._expiries
        order = self._order
        expiries.grow(capacity)
        order.grow(capacity)
        self._index.grow(capacity, version)
