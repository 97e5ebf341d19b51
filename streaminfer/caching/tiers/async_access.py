"""Coroutines over the memory of a cache and its tiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import check_duration, check_instance
from streaminfer.caching.table._timer_wheel_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory
    from streaminfer.caching.tiers.tier_reader import TierHit
    from streaminfer.caching.tiers.tier_set import TierSet

__all__ = ["LONGEST_READ_S", "TierAccess"]

LONGEST_READ_S = 1.0
_ABSENT: Any = object()


class TierAccess:
    """Reads, writes and deletes of single keys in memory and in the tiers.

    Args:
        memory: of the cache.
        tiers: of the cache; ``None``: it has none.
    """

    __slots__ = ("memory", "tiers")

    def __init__(self, memory: Memory, tiers: TierSet | None) -> None:
        self.memory = memory
        self.tiers = tiers

    async def fetch(self, key: str | bytes, default: Any, timeout_s: float) -> Any:
        """Return the fresh value of a key; see `EdgeCache.fetch`."""
        _check_key(key)
        seconds = min(check_duration("timeout_s", timeout_s, positive=True), LONGEST_READ_S)
        value = self.memory.get(key, _ABSENT)
        if value is not _ABSENT:
            return value
        if self.tiers is None:
            return default
        erasures = self.memory.erasures
        found = await self.tiers.read(key, granted_ns=round(seconds * 1e9), only_fresh=True)
        if found is None:
            return default
        self.promote(key, found, erasures)
        return found.value

    async def put_through(
        self, key: str | bytes, value: Any, ttl_s: float | None, tags: Iterable[str], subject: str | None
    ) -> bool:
        """Store a value in memory and the tiers; see `EdgeCache.put_through`."""
        from streaminfer.caching.defensive_copy import freeze  # noqa: PLC0415 - loads NumPy, which a mapping does without

        _check_key(key)
        memory = self.memory
        own, words, before = freeze(value), tuple(tags), memory.erasures
        stored = memory.put(key, own, ttl_s, words, subject)
        if self.tiers is None:
            return stored
        writes = self.tiers.write(
            key,
            own,
            ttl_ns=memory.freshness.lasts_ns(ttl_s, words),
            computed_ns=memory.now(),
            erasures=before if stored else memory.erasures,  # a value that is too large removes the one before it
            tags=words,
            subject=subject,
            wait=True,
        )
        import asyncio  # noqa: PLC0415 - a mapping alone does not need it

        written = await asyncio.gather(*writes)
        return stored and all(written)

    async def delete(self, key: str | bytes) -> bool:
        """Remove what memory and the tiers have of a key; see `EdgeCache.delete`."""
        _check_key(key)
        from streaminfer.caching.erasure.retention_counts import DELETED  # noqa: PLC0415 - a mapping alone has no log

        self.memory.delete(key, DELETED)
        if self.tiers is None:
            return True
        import asyncio  # noqa: PLC0415 - a mapping alone does not need it

        return all(await asyncio.gather(*self.tiers.begin_delete(key)))

    def promote(self, key: Any, found: TierHit, erasures: int) -> None:
        """Store in memory and on faster tiers what a tier had, with the age that it has.

        Args:
            key: of the entry.
            found: a fresh one.
            erasures: of the memory before the tier was read; nothing is stored if the key was erased since.
        """
        memory = self.memory
        if memory.erased_since(key, erasures) or self.tiers is None or memory.peek(key, _ABSENT) is not _ABSENT:
            return  # a value that was put while the tier was read is newer
        waited_ns = max(memory.now() - found.read_ns, 0)
        left_ns = found.left_ns if found.left_ns == NEVER else found.left_ns - waited_ns
        if left_ns <= 0:
            return
        memory.put_aged(key, found.value, left_ns, found.age_ns + waited_ns, found.tags, found.subject)
        if memory.erased_since(key, erasures):  # by another thread, since then, or by a value that was too large
            memory.take(key, None)
            return
        self.tiers.write(
            key,
            found.value,
            ttl_ns=NEVER if left_ns == NEVER else found.age_ns + found.left_ns,
            computed_ns=found.read_ns - found.age_ns,
            erasures=erasures,
            tags=found.tags,
            subject=found.subject,
            before=found.position,
        )


def _check_key(key: Any) -> None:
    check_instance("key", key, lambda it: isinstance(it, (str, bytes)), "a string or bytes, which tiers can name")
