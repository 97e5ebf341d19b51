"""What a cache tells the log of its retention policy: one record for many entries, never one for each.

Expiries and evictions are counted by place and class, and recorded when the cache is swept, when a report is made, and
otherwise about once a second while they go on. Erasures are recorded one by one, at once.

A log that fails takes nothing else with it: what it could not record is logged (``streaminfer.caching``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from streaminfer.caching.cache_events import CacheEvent
from streaminfer.caching.retention import Action, Log
from streaminfer.caching.retention_log import RetentionLog

__all__ = ["Ledger"]

_LOGGER = logging.getLogger("streaminfer.caching")
_PATIENCE_NS = 1_000_000_000
_REASONS = {"expired": "its time had passed", "evicted": "no room"}


class Ledger:
    """Counts for a log. Thread-safe.

    Args:
        log: of the policy.
        now: reads the cache's clock.
    """

    def __init__(self, log: Log, now: Callable[[], int]) -> None:
        self._log = log
        self._now = now
        self._lock = threading.Lock()
        self._counts: dict[tuple[Action, str, str, str], int] = {}
        self._flushed_ns = now()

    @property
    def events(self) -> Any:
        """What the log has."""
        return self._log.events

    def is_held(self, subject: str | None, tag: str | None) -> bool:
        """Whether a legal hold forbids an erasure."""
        return isinstance(self._log, RetentionLog) and bool(self._log.holds_against(subject, tag))

    def hear(self, event: CacheEvent) -> None:
        """A listener of the cache."""
        reason = _REASONS.get(event.kind)
        if reason is not None:  # erasures are recorded by who asked
            labels: Any = event.labels
            self.count(event.kind, "memory", "" if labels is None else labels[2], reason)

    def count(self, action: Action, where: str, data_class: str, reason: str, number: int = 1) -> None:
        """Adds to what is recorded next."""
        key = (action, where, data_class, reason)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + number
        if self._now() - self._flushed_ns >= _PATIENCE_NS:
            self.flush()

    def flush(self) -> None:
        """Records what was counted."""
        if not self._counts:
            return
        with self._lock:
            counts, self._counts = self._counts, {}
            self._flushed_ns = self._now()
        for (action, where, data_class, reason), number in counts.items():
            self.record(action, where=where, data_class=data_class, count=number, reason=reason)

    def record(
        self,
        action: Action,
        *,
        where: str,
        count: int,
        reason: str,
        data_class: str = "",
        subject: str | None = None,
        tag: str | None = None,
    ) -> None:
        """Records one thing at once."""
        try:
            self._log.record(
                action, where=where, data_class=data_class, count=count, reason=reason, subject=subject, tag=tag
            )
        except Exception:
            _LOGGER.exception("the retention log failed; not recorded: %s in %s, %d entries", action, where, count)
