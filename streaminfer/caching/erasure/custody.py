"""Custody of entries that left a cache's memory: under legal hold, or below their minimum age.

No lookup finds a preserved entry. It ends with the process; what must outlive that belongs on a `DiskTier`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.events import CacheEvent
from streaminfer.caching.table._timer_wheel_cy import NEVER
from streaminfer.compliance.retention import PRESERVED, Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import ErasureHeld

if TYPE_CHECKING:
    from streaminfer.caching.table._table_cy import EdgeTable

__all__ = ["Custody"]


class Custody:
    """Preserved entries of one cache. Thread-safe.

    Args:
        policy: with its minimum ages, and holds in its log.
        table: of the cache, which calls :meth:`on_event` for what leaves its memory.
        counts: what goes into the policy's log.
    """

    def __init__(self, policy: Retention, table: EdgeTable, counts: RetentionCounts) -> None:
        self.log = policy.log if isinstance(policy.log, RetentionLog) else None
        self._policy = policy
        self._table = table
        self._counts = counts
        self._lock = threading.Lock()
        self._entries: list[CacheEvent] = []
        self._has_min_age = policy.has_min_age

    def on_event(self, event: CacheEvent) -> None:
        """Preserve an entry that was evicted or expired, if it must be."""
        until_ns = self.until_ns(event.labels)
        if event.kind != "erased" and until_ns > self._table.now():
            with self._lock:
                self._entries.append(event)
            if until_ns < self._table.wake_ns:
                self._table.wake_ns = until_ns
                self._table.wake(until_ns)

    def settle(self, now_ns: int) -> int:
        """Release what need not be preserved longer; return when to look again, ``NEVER``: not known."""
        with self._lock:
            until = [(self.until_ns(event.labels), event) for event in self._entries]
            self._entries = [event for until_ns, event in until if until_ns > now_ns]
        for event in (event for until_ns, event in until if until_ns <= now_ns):
            labels: Any = event.labels
            self._counts.count("purged", PRESERVED, labels[2], "its hold or minimum age had ended")
        return min((until_ns for until_ns, _ in until if until_ns > now_ns), default=NEVER)

    def erase(self, subject: str | None, tag: str | None) -> int:
        """Release what an erasure matches; return how many there were."""
        with self._lock:
            before = self._entries  # freed when the lock is: a finalizer may use the cache
            self._entries = [event for event in before if not _matches(event.labels, subject, tag)]
            return len(before) - len(self._entries)

    def check(self, subject: str | None, tag: str | None) -> None:
        """Raise `ErasureHeld`, and record it, if the erasure of a subject or tag is forbidden."""
        objections = self._objections(subject, tag)
        if objections:
            why = "; ".join(objections)
            self._counts.record("erase_held", where="memory", count=0, reason=why, subject=subject, tag=tag)
            raise ErasureHeld(objections)

    @property
    def entries(self) -> tuple[CacheEvent, ...]:
        """Preserved entries, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def _objections(self, subject: str | None, tag: str | None) -> tuple[str, ...]:
        """Return what forbids an erasure, in words that name no person."""
        holds = () if self.log is None else self.log.holds_against(subject, tag)
        found = [
            f"a legal hold on {f'the class {it.data_class!r}' if it.data_class else 'a subject'}: {it.reason}"
            for it in holds
        ]
        if self._has_min_age:
            labels = (*self._table.snapshot(3)[::2], *(event.labels for event in self.entries))
            until_ns = max((self._aged_ns(it) for it in labels if _matches(it, subject, tag)), default=0)
            left_s = (until_ns - self._table.now()) / 1e9
            if left_s > 0:
                found.append(f"entries are below the minimum age of their class, for {left_s:.3g} s more")
        return tuple(found)

    def until_ns(self, labels: Any) -> int:
        """Return until when an entry must be preserved if it leaves memory; ``NEVER``: no end is known."""
        if self.log is not None and labels is not None and self.log.is_held(labels[0], labels[1]):
            return NEVER
        return self._aged_ns(labels)

    def _aged_ns(self, labels: Any) -> int:
        """Return the instant at which an entry has its minimum age."""
        if labels is None or not self._has_min_age:
            return 0
        until_ns: int = labels[3] + round(self._policy.rule(labels[1]).min_age_s * 1e9)
        return until_ns


def _matches(labels: Any, subject: str | None, tag: str | None) -> bool:
    return labels is not None and (labels[0] == subject if tag is None else tag in labels[1])
