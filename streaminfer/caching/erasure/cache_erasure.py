"""Erasure, legal holds and the retention report of one cache: its memory and its tiers together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaminfer.caching.erasure.erasure import PendingErasure
    from streaminfer.caching.memory import Memory
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.compliance.retention_report import RetentionReport

__all__ = ["CacheErasure"]


class CacheErasure:
    """Erases, holds and reports what a cache has, in memory and in the tiers.

    Args:
        memory: of the cache.
        tiers: of the cache; ``None``: it has none.
    """

    __slots__ = ("_memory", "_tiers")

    def __init__(self, memory: Memory, tiers: TierSet | None) -> None:
        self._memory = memory
        self._tiers = tiers

    def begin(self, subject: str | None, tag: str | None) -> PendingErasure:
        """Erase memory, and have the tiers erase theirs; see `EdgeCache.erase`. Thread-safe."""
        from streaminfer.caching.erasure.erasure import PendingErasure, check_selection  # noqa: PLC0415 - not every cache is erased

        subject, tag = check_selection(subject, tag)
        memory = self._memory
        memory.check_erasure(subject, tag)
        if self._tiers is not None:
            return self._tiers.erase(subject, tag, partial(memory.erase, subject, tag))
        erasing = PendingErasure(subject, tag)
        erasing.arm(memory.erase(subject, tag))
        return erasing

    async def hold(self, subject: str | None, data_class: str | None, reason: str) -> tuple[str, ...]:
        """Begin a legal hold, and return the tiers that cannot hold; see `EdgeCache.hold`."""
        from streaminfer.caching.erasure.memory_retention import record_hold  # noqa: PLC0415 - needs a policy

        await record_hold(self._memory.retention, "held", subject, data_class, reason)
        return () if self._tiers is None else tuple(await self._tiers.legal_hold(subject, data_class, on=True))

    async def release(self, subject: str | None, data_class: str | None, reason: str) -> None:
        """End a legal hold, and free what it alone preserved; see `EdgeCache.release`."""
        from streaminfer.caching.erasure.memory_retention import record_hold  # noqa: PLC0415 - needs a policy

        await record_hold(self._memory.retention, "released", subject, data_class, reason)
        if self._tiers is not None:
            await self._tiers.legal_hold(subject, data_class, on=False)
        self._memory.expire_due(self._memory.now(), 0)

    async def report(self) -> RetentionReport:
        """Return the report of the cache; see `EdgeCache.retention_report`."""
        from streaminfer.caching.erasure.memory_retention import report  # noqa: PLC0415 - needs a policy

        return await report(self._memory.retention, self._tiers)
