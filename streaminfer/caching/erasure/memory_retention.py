"""Retention in the memory of one cache: what it records, preserves and watches.

An entry that leaves memory under a legal hold, or that leaves or is replaced below its minimum age, is preserved: no
lookup finds it, and it ends with the process. Data that must outlive the process belong on a `DiskTier`.

For proofs, this module keeps weak references to values that left the cache and finds those that still live. It watches
the arrays that ``defensive_copy.freeze`` made. Callers of wrapped services get views of such an array, never the array
itself. If the array outlives its entry, the reference is therefore in this package, or in a caller of the mapping's
``get`` or ``fetch``. Other values cannot be told apart from those of callers, or do not support weak references.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streaminfer._internal.forking import call_in_child, new_reentrant_lock
from streaminfer._internal.validation import expected
from streaminfer.caching.erasure.retention_counts import DELETED, REASONS, RetentionCounts
from streaminfer.caching.table._slots_cy import NEVER
from streaminfer.compliance.retention import PRESERVED, Holding, Retention
from streaminfer.errors import ErasureHeld

if TYPE_CHECKING:
    from streaminfer.caching.memory import CacheEvent, Memory
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.compliance.retention_log import Action, RetentionEvent
    from streaminfer.compliance.retention_report import RetentionReport

__all__ = ["MemoryRetention"]

_MAX_DEPTH = 16
_MAX_EVENTS = 10_000  # as many as the table notes
_MEMORY_BOUND_S = 0.25  # the bound that `EdgeCache` states for expired entries


class MemoryRetention:
    """Retention of one cache's memory. Thread-safe.

    Args:
        policy: the policy, with its minimum ages; its log has the holds.
        memory: of the cache.

    Attributes:
        policy: the policy.
        log: the policy's log; ``None`` if it has none.
        counts: counts for the policy's log.
        undelivered: processed events for listeners.
        events_lost: events that no listener got, because one listener did not return.
    """

    def __init__(self, policy: Retention, memory: Memory) -> None:
        self.policy = policy
        self.log = policy.log
        self.counts = RetentionCounts(policy.log, memory.now)
        # living arrays of entries that expired or were erased
        self._outliving: weakref.WeakValueDictionary[int, np.ndarray[Any, Any]] = weakref.WeakValueDictionary()
        self._memory = memory
        self._lock = new_reentrant_lock()  # a finalizer that the garbage collector runs may use the cache
        call_in_child(self._forget_holds)
        self._numbers = itertools.count()
        self._preserved: dict[int, CacheEvent] = {}  # by number, oldest first
        self._until: list[tuple[int, int]] = []  # a heap of (end of preservation, number)
        self._holds: tuple[RetentionEvent, ...] | None = ()  # holds by which `_until` was made; ``None``: unknown
        self._has_min_age = policy.has_min_age
        self.undelivered: deque[CacheEvent] = deque()
        self.events_lost = 0

    @property
    def preserved(self) -> tuple[CacheEvent, ...]:
        """Entries that left memory and are preserved, oldest first."""
        self.process_events()
        with self._lock:
            return tuple(self._preserved.values())

    def process_events(self) -> None:
        """Preserve the entries that left memory and must be preserved, then count them and watch their values.

        Listeners get the events later. A slow one delays this in no thread, so an erasure finds all preserved entries.
        """
        with self._lock:
            noted = self._memory.drain()  # freed after the lock, because a finalizer may use the cache
            events = self._memory.events_of(noted)
            for event in events:
                self._preserve(event)
                if not self._memory.events or event.kind == "replaced":
                    continue
                if len(self.undelivered) < _MAX_EVENTS:
                    self.undelivered.append(event)
                else:
                    self.events_lost += 1
        for event in events:
            self._count(event)

    def take_events(self) -> list[CacheEvent]:
        """Return the processed events for listeners and forget them."""
        return [self.undelivered.popleft() for _ in range(len(self.undelivered))]

    def _count(self, event: CacheEvent) -> None:
        if event.kind == "replaced":  # the log has no record of these, and callers may still use the value
            return
        if event.kind != "erased":  # erasures are recorded one by one
            labels: Any = event.labels
            self.counts.count(event.kind, "memory", "" if labels is None else labels[2], REASONS[event.kind])
        if event.kind != "evicted":  # an evicted value is not past its time, so callers may still use it
            self._outliving.update((id(array), array) for array in _copies(event.value, _MAX_DEPTH))

    def _preserve(self, event: CacheEvent) -> None:
        """Preserve an entry that left memory, if it must be; call under the lock."""
        if event.kind == "erased" or self._end_ns(event) <= self._memory.now():
            return
        self._follow_holds()
        until_ns, number = self._end_ns(event), next(self._numbers)  # with the current holds
        self._preserved[number] = event
        heapq.heappush(self._until, (until_ns, number))
        if until_ns < self._memory.wake_ns:
            self._memory.wake_ns = until_ns
            self._memory.wake()

    def outliving_arrays(self) -> int:
        """Return the number of arrays that outlived their expired or erased entries, without preserved ones."""
        preserved = {id(array) for event in self.preserved for array in _copies(event.value, _MAX_DEPTH)}
        # `valuerefs` lists all in one step, also while other entries leave the cache
        living = [array for reference in self._outliving.valuerefs() if (array := reference()) is not None]
        return sum(id(array) not in preserved for array in living)

    def expire_due(self, now_ns: int) -> int:
        """Free entries whose preservation has ended, write counts to the log, and return when to look again."""
        ended: list[CacheEvent] = []  # freed after the lock, because a finalizer may use the cache
        self._memory.deliver_events()
        with self._lock:
            self._follow_holds()
            while self._until and self._until[0][0] <= now_ns:
                event = self._preserved.pop(heapq.heappop(self._until)[1], None)
                if event is not None:
                    ended.append(event)
            next_ns = self._until[0][0] if self._until else NEVER
        for event in ended:
            labels: Any = event.labels
            self.counts.count("purged", PRESERVED, labels[2], "its hold or minimum age had ended")
        self.counts.flush()
        return next_ns

    def _forget_holds(self) -> None:
        """Make `_until` again in a forked process: another thread may have been interrupted in `_follow_holds`."""
        self._holds = None

    def _follow_holds(self) -> None:
        """Update the end of preservation of each entry if holds began or ended; call under the lock."""
        holds = () if self.log is None else self.log.holds
        if holds != self._holds:
            self._holds = holds
            self._until.clear()
            for number, event in self._preserved.copy().items():  # a copy: a finalizer may add to both
                heapq.heappush(self._until, (self._end_ns(event), number))

    def erase(self, subject: str | None, tag: str | None, in_table: int) -> int:
        """Erase preserved entries of a subject or with a tag, record the whole erasure, and return their number."""
        erased: list[CacheEvent | None] = []  # freed after the lock, because a finalizer may use the cache
        self._memory.deliver_events()
        with self._lock:
            for number, event in self._preserved.copy().items():
                if _matches(event.labels, subject, tag):
                    erased.append(self._preserved.pop(number, None))
        count = len(erased) - erased.count(None)
        self.counts.record(
            "erased", where="memory", count=in_table + count, reason="asked for", subject=subject, tag=tag
        )
        return count

    def count_deleted(self, by: str) -> None:
        """Count an entry that was deleted by its key."""
        self.counts.count("removed", "memory", "", f"{DELETED}{by}")

    def check_erasure(self, subject: str | None, tag: str | None) -> None:
        """Raise and record `ErasureHeld` if a legal hold or a minimum age forbids the erasure; it names no person."""
        holds = () if self.log is None else self.log.holds_against(subject, tag)
        reasons = [
            f"a legal hold on {f'the class {it.data_class!r}' if it.data_class else 'a subject'}: {it.reason}"
            for it in holds
        ]
        if self._has_min_age:
            labels = (*self._memory.contents()[::4], *(event.labels for event in self.preserved))
            until_ns = max((self._aged_ns(it) for it in labels if _matches(it, subject, tag)), default=0)
            left_s = (until_ns - self._memory.now()) / 1e9
            if left_s > 0:
                reasons.append(f"entries are below the minimum age of their class, for {left_s:.3g} s more")
        if reasons:
            reason = "; ".join(reasons)
            self.counts.record("erase_held", where="memory", count=0, reason=reason, subject=subject, tag=tag)
            raise ErasureHeld(tuple(reasons))

    def _end_ns(self, event: CacheEvent) -> int:
        """Return the instant at which the preservation of an entry ends; no hold prolongs that of a replaced value."""
        return self._aged_ns(event.labels) if event.kind == "replaced" else self.until_ns(event.labels)

    def until_ns(self, labels: Any) -> int:
        """Return the instant until which an entry that leaves memory must be preserved; ``NEVER``: no end is known."""
        if self.log is not None and labels is not None and self.log.is_held(labels[0], labels[1]):
            return NEVER
        return self._aged_ns(labels)

    def _aged_ns(self, labels: Any) -> int:
        """Return the instant at which an entry reaches its minimum age; 0: it has none."""
        if labels is None or not self._has_min_age:
            return 0
        until_ns: int = labels[3] + round(self.policy.rule(labels[1]).min_age_s * 1e9)
        return until_ns

    def holdings(self) -> list[Holding]:
        """Return the entries in memory by class, with the age of the oldest; stale ones and failures count."""
        stored: dict[str, list[int | None]] = {}
        self._memory.expire()
        for labels in self._memory.contents()[::4]:
            data_class, stored_ns = ("", None) if labels is None else labels[2:]
            stored.setdefault(data_class, []).append(stored_ns)
        now_ns = self._memory.now()
        size = self._memory.counters()[4] if len(stored) == 1 else None  # bytes are not counted by class
        holdings = []
        for data_class, instants in stored.items():
            known_instants = [it for it in instants if it is not None]
            age_s = max(now_ns - min(known_instants), 0) / 1e9 if len(known_instants) == len(instants) else None
            holdings.append(Holding("memory", data_class, len(instants), age_s, size))
        for event in self.preserved:
            preserved: Any = event.labels
            holdings.append(Holding(PRESERVED, preserved[2], 1, max(now_ns - preserved[3], 0) / 1e9, None))
        return holdings or [Holding("memory", "", 0, None, 0)]

    async def set_hold(
        self, tiers: TierSet | None, subject: str | None, data_class: str | None, reason: str, *, on: bool
    ) -> tuple[str, ...]:
        """Begin or end a legal hold; see `EdgeCache.hold` and `EdgeCache.release`.

        Returns:
            The tiers that cannot hold.
        """
        if (subject is None) == (data_class is None):
            got = "neither" if subject is None else "both"
            raise TypeError(f"hold: expected a subject or a data_class, got {got}")
        if self.log is None:
            raise TypeError(expected("retention", "a policy with a RetentionLog, which records the hold", self.policy))
        if data_class is not None and data_class not in self.policy.classes:
            raise ValueError(expected("data_class", f"one of the policy's, {sorted(self.policy.classes)}", data_class))
        await self.counts.settle()  # so that the log has earlier rejected erasures before this hold
        action: Action = "held" if on else "released"
        record = partial(self.log.record, action, where="all", count=0, reason=reason, subject=subject)
        if self.log.path is None:  # a log in memory does not wait for a disk
            record(data_class=data_class or "")
        else:
            await asyncio.to_thread(record, data_class=data_class or "")
        unsupported = () if tiers is None else await tiers.legal_hold(subject, data_class, on=on)
        self._memory.expire_due(self._memory.now(), 0)  # free what only the ended hold preserved
        return tuple(unsupported)

    async def report(self, tiers: TierSet | None) -> RetentionReport:
        """Return the report of the cache; see `EdgeCache.retention_report`."""
        from streaminfer.compliance.retention_report import build_report  # noqa: PLC0415 - loaded with the first report

        holdings = self.holdings()
        bounds = {"memory": _MEMORY_BOUND_S}
        if tiers is not None:
            tiers.count_removals()
            holdings += await tiers.inventory()
            stated_s = {worker.name: worker.tier.purge_bound_s for worker in tiers.workers}
            bounds |= {name: bound_s for name, bound_s in stated_s.items() if bound_s is not None}
        await self.counts.settle()
        if tiers is not None and self.log is not None:
            tiers.restate_failures(self.log)
            await self.counts.settle()
        return build_report(self.policy, holdings, self.log, purge_bounds_s=bounds)


def _copies(value: Any, levels: int) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        owner = value.base
        if isinstance(owner, np.ndarray) and not owner.flags.writeable:
            yield value
    elif levels and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _copies(item, levels - 1)


def _matches(labels: Any, subject: str | None, tag: str | None) -> bool:
    return labels is not None and (labels[0] == subject if tag is None else tag in labels[1])
