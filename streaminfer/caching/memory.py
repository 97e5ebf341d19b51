"""Memory of a cache: its table, the part of the retention policy that concerns memory, and the listeners of events.

*Events.* The table notes each event. After an operation, the same thread delivers its events, with no lock held. One
thread delivers at a time, so that listeners get events in order. If another thread is delivering, this thread leaves
its events to that thread or to the next operation. Events that a listener causes are delivered after the
listener returns, in a few rounds; the rest waits for the next operation. A listener that fills the cache again
therefore cannot loop for ever. A retention policy processes each event before listeners get it, and waits for none.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import attrs

from streaminfer._internal.listeners import Listeners
from streaminfer._internal.locking import is_atomic
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_count
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.caching._locking import guarded
from streaminfer.caching.freshness import About, Freshness, duration_ns, labels_of
from streaminfer.caching.table._entries_cy import NO_LIMIT
from streaminfer.caching.table._slots_cy import NEVER
from streaminfer.caching.table._table_cy import EdgeTable

IS_ATOMIC = is_atomic(EdgeTable, "peek")

if TYPE_CHECKING:
    from streaminfer.caching.erasure.erasure import PendingErasure
    from streaminfer.caching.erasure.memory_retention import MemoryRetention
    from streaminfer.caching.table._eviction_cy import EvictionOrder
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.compliance.retention_log import RetentionLog
    from streaminfer.protocols import Clock

    _Table = EdgeTable
else:
    _Table = EdgeTable if IS_ATOMIC else guarded(EdgeTable)

__all__ = ["IS_ATOMIC", "MAX_BYTES", "CacheEvent", "CacheStatistics", "Memory"]

MAX_BYTES = 2**60
# a compiled table does not support weak references; an uncompiled one does
_WEAK_REFERENCES = () if hasattr(_Table, "__weakref__") else ("__weakref__",)


class CacheEvent(NamedTuple):
    """Entry that was evicted, expired or erased.

    Attributes:
        kind: ``"evicted"``, ``"expired"`` or ``"erased"``; among the preserved entries also ``"replaced"``, of which
            listeners learn nothing.
        key: its key.
        value: its value, or the failure that was remembered.
        labels: its subject and its tags; ``None`` if it had neither.
    """

    kind: Literal["evicted", "expired", "erased", "replaced"]
    key: Any
    value: Any
    labels: tuple[str | None, tuple[str, ...]] | None = None


@attrs.frozen(kw_only=True)
class CacheStatistics(Snapshot):
    """Contents and counters of an `EdgeCache` at one moment. Expired entries are freed first.

    Counting rules:

    * Each ``get``, ``[]`` and ``setdefault``, and each lookup of a wrapped service or function, counts in exactly one
      of ``hits``, ``misses``, ``stale_hits`` and ``negative_hits``. ``peek``, ``in``, ``pop``, ``popitem``, ``del``
      and iteration count in none.
    * Each value or failure that is stored counts in ``inserted`` if its key had no entry, else in ``replaced``. A value
      larger than the whole cache counts in ``rejected``.
    * Each entry that leaves counts in exactly one of ``evicted`` (no room), ``expired`` (its time and stale time had
      passed), ``erased`` (by subject or tag) and ``removed`` (``del``, ``pop``, ``popitem``, ``clear``, or because a
      new value for its key was rejected). ``inserted`` equals ``entries`` + ``stale`` + ``negative`` + these four.

    Counters never decrease.

    Attributes:
        entries: fresh entries; the same as ``len``.
        size: the bytes of their values.
        stale: expired entries that wrapped calls can still use.
        negative: remembered failures.
        held_bytes: the bytes of all entries, stale ones and failures included; ``max_bytes`` limits them.
        hits: lookups that found a fresh value.
        misses: lookups that found nothing.
        stale_hits: lookups of a wrapped call that found a stale value.
        negative_hits: lookups of a wrapped call that found a failure.
        inserted: entries that were added.
        replaced: values that replaced another.
        evicted: entries that were removed because there was no room.
        expired: entries that were removed because their time had passed.
        erased: entries that were erased by subject or tag.
        removed: entries that were removed by hand.
        rejected: values larger than the whole cache.
        events_lost: events that no listener got, because one listener did not return.
        listener_errors: exceptions that listeners raised.
        flights: `FlightStatistics` of wrapped services and functions; ``None`` before the first ``wrap``.
        tiers: a `TierUsage` for each tier, the fastest first.
    """

    entries: int
    size: int
    stale: int
    negative: int
    held_bytes: int
    hits: int
    misses: int
    stale_hits: int
    negative_hits: int
    inserted: int
    replaced: int
    evicted: int
    expired: int
    erased: int
    removed: int
    rejected: int
    events_lost: int
    listener_errors: int
    flights: Snapshot | None = None
    tiers: tuple[Snapshot, ...] = ()

    @property
    def hit_rate(self) -> float:
        """Share of lookups that found a fresh value, a stale one or a failure; NaN before the first."""
        all_hits = self.hits + self.stale_hits + self.negative_hits
        return all_hits / (all_hits + self.misses) if all_hits + self.misses else float("nan")


_COUNTERS = tuple(field.name for field in attrs.fields(CacheStatistics) if field.default is attrs.NOTHING)


class Memory(StackClock, _Table):
    """Table of an `EdgeCache`, for its layers, its tiers and the expiry thread; callers use the cache itself.

    Args:
        maxsize: most entries; or ``NO_LIMIT``.
        max_bytes: most bytes of values; or ``NO_LIMIT``.
        freshness: the time settings, with the retention policy.
        policy: the eviction policy, a subclass of `EvictionOrder`.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: a C read of the monotonic clock.

    Attributes:
        freshness: the time settings.
        events: the listeners of `CacheEvent`.
        retention: applies the retention policy to memory; ``None`` without a policy.
    """

    # slots instead of a dictionary: compiled methods call one another faster
    __slots__ = ("_clock_given", "_own_log", "events", "freshness", "retention", *_WEAK_REFERENCES)

    def __init__(
        self, maxsize: int, max_bytes: int, freshness: Freshness, policy: type[EvictionOrder], clock: Clock | None
    ) -> None:
        # the log shows only the kind: keys and values can be personal data
        expectation, describe = "a function of a CacheEvent", "an entry that was {0.kind}".format
        self.events = Listeners[CacheEvent]("streaminfer.caching", "cache", expectation, describe)
        self.freshness = freshness
        self.retention: MemoryRetention | None = None
        self._own_log: RetentionLog | None = None
        clock = self._accept_clock(clock)
        super().__init__(maxsize, max_bytes, freshness.lasts_ns(None, ()), freshness.stale_ns, policy, clock)
        self.revalidate_ns = freshness.revalidate_ns
        self.keeping = not IS_ATOMIC
        if freshness.policy is not None:
            from streaminfer.caching.erasure.memory_retention import MemoryRetention  # noqa: PLC0415 - needs a policy

            self.retention = MemoryRetention(freshness.policy, self)
            self.listening = True
            self.preserving = freshness.policy.has_min_age
        self._await_expiry()

    # -- storing ------------------------------------------------------------------------------------------------

    def put(
        self,
        key: Any,
        value: Any,
        ttl_s: float | None = None,
        about: About | None = None,
        size: int | None = None,
        erasures: int = NO_LIMIT,
    ) -> bool:
        """Store a value with its subject and tags, unless it was erased after ``erasures``; see `EdgeCache.put`."""
        ttl_ns = -1 if ttl_s is None else duration_ns("ttl_s", ttl_s)
        weight = -1 if size is None else check_count("size", size, at_least=0, at_most=MAX_BYTES)
        labels = None if about is None else labels_of(*about)
        if self.retention is not None:
            ttl_ns, labels = self.freshness.governed(ttl_ns, labels, self.now())
        return self.store(key, value, ttl_ns, weight, labels, erasures)

    def add(self, key: Any, default: Any) -> Any:
        """Return the fresh value of a key; else store ``default`` under the retention policy and return it."""
        return self.setdefault(key, default, *self.freshness.governed(-1, None, self.now()))

    def put_aged(self, key: Any, value: Any, ttl_ns: int, age_ns: int, about: About, erasures: int) -> None:
        """Store a value that was computed ``age_ns`` ago, for ``ttl_ns`` more, unless it was erased since."""
        labels = labels_of(*about)
        if self.retention is not None:
            _, labels = self.freshness.governed(0, labels, self.now(), age_ns=age_ns)
        self.store(key, value, ttl_ns, -1, labels, erasures)

    def put_negative(self, key: Any, error: Any, ttl_s: float | None, about: About, erasures: int = NO_LIMIT) -> bool:
        """Remember a failure, unless it was erased since; see `EdgeCache.put_negative`."""
        ttl_ns = -1 if ttl_s is None else duration_ns("ttl_s", ttl_s)
        labels = labels_of(*about)
        if self.retention is not None:
            ttl_ns, labels = self.freshness.governed(ttl_ns, labels, self.now(), failed=True)
        lasts_ns = self.freshness.negative_ns if ttl_ns < 0 else ttl_ns
        return self.store_negative(key, error, lasts_ns, labels, erasures)

    # -- erasing ------------------------------------------------------------------------------------------------

    def begin_erasure(self, tiers: TierSet | None, subject: str | None, tag: str | None) -> PendingErasure:
        """Erase memory, and begin to erase the tiers; see `EdgeCache.erase`."""
        from streaminfer.caching.erasure.erasure import PendingErasure, check_selection  # noqa: PLC0415 - not every cache is erased

        subject, tag = check_selection(subject, tag)
        self.check_erasure(subject, tag)
        if tiers is not None:
            return tiers.erase(subject, tag)
        erasing = PendingErasure(subject, tag)
        erasing.arm(self.erase(subject, tag))
        return erasing

    def check_erasure(self, subject: str | None, tag: str | None) -> None:
        """Raise `ErasureHeld` if a legal hold or a minimum age forbids the erasure."""
        if self.retention is not None:
            self.retention.check_erasure(subject, tag)

    def erase(self, subject: str | None, tag: str | None) -> int:
        """Erase the entries in memory of a subject or with a tag, and record it; return how many were erased."""
        count: int = self.erase_labeled(subject, tag)
        if self.retention is not None:
            count += self.retention.erase(subject, tag, count)
        if self.erasure_log is self._own_log:
            from streaminfer.compliance.retention_log import RetentionLog  # noqa: PLC0415 - not every cache is erased

            self._own_log = self._own_log or RetentionLog(wall_clock=self.now)
            self._own_log.record("erased", where="memory", count=count, reason="asked for", subject=subject, tag=tag)
        return count

    def delete(self, key: Any, by: str = "") -> None:
        """Remove the entry of a key and count it for the log; ``by`` is appended to the reason."""
        if self.discard(key) and self.retention is not None:
            self.retention.count_deleted(by)

    @property
    def erasure_log(self) -> RetentionLog | None:
        """Log of erasures: the policy's `RetentionLog`, else one in memory; ``None`` before the first erasure."""
        log = None if self.retention is None else self.retention.log
        return self._own_log if log is None else log

    # -- time ---------------------------------------------------------------------------------------------------

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock  # entries keep their instants
        self._await_expiry()

    def _await_expiry(self) -> None:
        """Let the expiry thread free due entries, unless the cache has a clock that the thread cannot read."""
        if self.clock not in (None, monotonic_ns):
            self.wake_ns = -1  # earlier than every expiry, so no store wakes the thread
            return
        self.wake_ns = NEVER
        next_ns = self.expire_due(self.now(), 0)
        if next_ns != NEVER:
            self.wake_ns = next_ns
            self.wake()

    def wake(self) -> None:
        """Make the expiry thread look for due entries at ``wake_ns``."""
        from streaminfer.caching.expiry import THREAD  # noqa: PLC0415 - most caches expire nothing

        THREAD.wake(self)

    def expire_due(self, now_ns: int, limit: int) -> int:
        """Free about ``limit`` due entries, record them, and return the instant at which to look again."""
        next_ns: int = super().expire_due(now_ns, limit)
        if self.retention is not None:
            next_ns = min(next_ns, self.retention.expire_due(now_ns))
        return next_ns

    def expire(self) -> int:
        """Free expired entries, and those whose preservation has ended; return how many entries expired."""
        count: int = super().expire()
        if self.retention is not None:
            self.retention.expire_due(self.now())
        return count

    def listen(self, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Add a listener for all later events; see `EdgeCache.listen`."""
        remove = self.events.add(listener, self._note_listeners)

        def unlisten() -> None:
            remove()
            self.deliver_events()  # without listeners, this frees what is left

        return unlisten

    def _note_listeners(self, any_listens: bool) -> None:
        self.listening = any_listens or self.retention is not None

    def statistics(self, flights: Snapshot | None = None, tiers: tuple[Snapshot, ...] = ()) -> CacheStatistics:
        """Return a frozen snapshot, with the statistics of flights and tiers."""
        counted: dict[str, Any] = dict(zip(_COUNTERS, (*self.counters(), self.events.errors), strict=True))
        if self.retention is not None:
            counted["events_lost"] += self.retention.events_lost
        return CacheStatistics(**counted, flights=flights, tiers=tiers)

    def deliver_events(self) -> None:
        """Deliver the noted events to listeners and free the noted values; operations do so themselves."""
        if self.retention is None:
            self.events.deliver(self._take_events)
            return
        self.retention.process_events()
        if self.retention.undelivered:  # also without listeners, so that what the last one left is freed
            self.events.deliver(self.retention.take_events)

    def _take_events(self) -> list[CacheEvent]:
        return self.events_of(self.drain())

    @staticmethod
    def events_of(noted: list[Any]) -> list[CacheEvent]:
        """Return the events in what `drain` returned; entries noted with kind ``None`` are only freed."""
        items = iter(noted)
        return [CacheEvent(*event) for event in zip(items, items, items, items, strict=True) if event[0] is not None]

    if IS_ATOMIC:
        _deliver_events = deliver_events
