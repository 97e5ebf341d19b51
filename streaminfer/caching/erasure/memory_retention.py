"""Retention policy of one cache, as far as memory is concerned: what it records, preserves and watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import expected
from streaminfer.caching.erasure.custody import Custody
from streaminfer.caching.erasure.departed_values import Departed
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.table._timer_wheel_cy import NEVER
from streaminfer.compliance.retention import PRESERVED, Action, Holding, Retention
from streaminfer.compliance.retention_log import RetentionLog

if TYPE_CHECKING:
    from streaminfer.caching.events import CacheEvent
    from streaminfer.caching.table._table_cy import EdgeTable
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.compliance.retention_report import RetentionReport

__all__ = ["MemoryRetention", "holdings_of", "record_hold", "report"]

_MEMORY_BOUND_S = 0.25  # stated by `EdgeCache`: how long memory may hold what has expired


class MemoryRetention:
    """Retention of one cache's memory. Thread-safe.

    Args:
        policy: the policy.
        table: of the cache.

    Attributes:
        policy: the policy.
        counts: what goes into the policy's log.
        custody: entries that left memory and are preserved.
        departed: arrays of entries that left and still live, for ``si.prove``.
    """

    def __init__(self, policy: Retention, table: EdgeTable) -> None:
        self.policy = policy
        self.counts = RetentionCounts(policy.log, table.now)
        self.custody = Custody(policy, table, self.counts)
        self.departed = Departed()

    @property
    def listeners(self) -> list[Callable[[CacheEvent], object]]:
        """What must hear the events of the cache, in this order."""
        return [self.counts.on_event, self.custody.on_event, self.departed.on_event]

    @property
    def log(self) -> RetentionLog | None:
        """The policy's log, if it is a `RetentionLog`."""
        return self.policy.log if isinstance(self.policy.log, RetentionLog) else None

    @property
    def preserved(self) -> tuple[CacheEvent, ...]:
        """What left memory and is preserved."""
        return self.custody.entries

    def expire_due(self, now_ns: int) -> int:
        """Release what need not be preserved longer, write counts to the log, and return when to look again."""
        next_ns = self.custody.settle(now_ns) if self.custody.entries else NEVER
        self.counts.flush()
        return next_ns

    def check_erasure(self, subject: str | None, tag: str | None) -> None:
        """Raise `ErasureHeld` if a legal hold, or a minimum age, forbids an erasure."""
        self.custody.check(subject, tag)

    def erase(self, subject: str | None, tag: str | None, in_table: int) -> int:
        """Erase what is preserved of a subject, or with a tag, record it all, and return how many were preserved."""
        count = self.custody.erase(subject, tag)
        self.counts.record(
            "erased", where="memory", count=in_table + count, reason="asked for", subject=subject, tag=tag
        )
        return count

    async def settle_log(self) -> None:
        """Wait until the log has what was counted and recorded before."""
        if self.counts.is_behind:
            await asyncio.to_thread(self.counts.drain)


async def record_hold(
    retention: MemoryRetention | None, action: Action, subject: str | None, data_class: str | None, reason: str
) -> None:
    """Record the begin or end of a legal hold in the policy's log.

    Raises:
        TypeError, ValueError: not exactly one of subject and class, or the policy has no such class or `RetentionLog`.
        BackendError: the log failed.
    """
    if (subject is None) == (data_class is None):
        raise TypeError("hold: expected a subject or a data_class, got " + ("neither" if subject is None else "both"))
    policy, log = (None, None) if retention is None else (retention.policy, retention.log)
    if retention is None or policy is None or log is None:
        raise TypeError(expected("retention", "a policy with a RetentionLog, which records the hold", policy))
    if data_class is not None and data_class not in policy.classes:
        raise ValueError(expected("data_class", f"one of the policy's, {sorted(policy.classes)}", data_class))
    await retention.settle_log()  # an erasure that was rejected before this is recorded before it
    record = partial(log.record, action, where="all", count=0, reason=reason, subject=subject)
    await asyncio.to_thread(record, data_class=data_class or "")


async def report(
    retention: MemoryRetention | None, in_memory: Callable[[], list[Holding]], tiers: TierSet | None
) -> RetentionReport:
    """Return the report of a cache; see `EdgeCache.retention_report`."""
    from streaminfer.compliance.retention_report import build_report  # noqa: PLC0415 - loaded with the first report

    if retention is None:
        raise TypeError(expected("retention", "a cache with a policy: EdgeCache(retention=Retention(…))", None))
    holdings = in_memory()
    bounds = {"memory": _MEMORY_BOUND_S}
    if tiers is not None:
        tiers.tell_what_went()
        holdings += await tiers.inventory()
        bounds |= tiers.purge_bounds_s()
    retention.counts.flush()
    await retention.settle_log()
    log: Any = retention.policy.log
    events = () if log is None else log if isinstance(log, RetentionLog) else log.events
    return build_report(retention.policy, holdings, events, purge_bounds_s=bounds)


def holdings_of(table: EdgeTable, preserved: tuple[CacheEvent, ...], size_bytes: int) -> list[Holding]:
    """Return what memory holds by class: how many entries, stale ones and failures included, and the oldest.

    Args:
        table: of the cache.
        preserved: what is preserved besides.
        size_bytes: of all entries; a holding has it where there is one class.
    """
    stored: dict[str, list[int | None]] = {}
    for labels in table.snapshot(3)[::2]:
        data_class, stored_ns = ("", None) if labels is None else labels[2:]
        stored.setdefault(data_class, []).append(stored_ns)
    now_ns = table.now()
    size = size_bytes if len(stored) == 1 else None
    holdings = []
    for data_class, instants in stored.items():
        known = [it for it in instants if it is not None]
        age_s = max(now_ns - min(known), 0) / 1e9 if len(known) == len(instants) else None
        holdings.append(Holding("memory", data_class, len(instants), age_s, size))
    for event in preserved:
        held: Any = event.labels
        holdings.append(Holding(PRESERVED, held[2], 1, max(now_ns - held[3], 0) / 1e9, None))
    return holdings or [Holding("memory", "", 0, None, 0)]
