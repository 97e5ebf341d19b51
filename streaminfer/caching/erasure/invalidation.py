"""Invalidation: what another process deleted or erased in a shared tier is dropped from memory and faster tiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from streaminfer.caching.tiers.cache_table import CacheTable
    from streaminfer.caching.tiers.protocol import Notice

__all__ = ["drop"]


class ErasableTiers(Protocol):
    """What is needed of the tiers of a cache."""

    def begin_delete(self, key: str | bytes, *, before: int | None = None) -> Any:
        """Have what the tiers before a position have of a key removed."""
        ...

    def erase(
        self, subject: str | None, tag: str | None, in_memory: Callable[[], int], *, before: int | None = None
    ) -> Any:
        """Erase memory, and the tiers before a position."""
        ...


def drop(memory: CacheTable, tiers: ErasableTiers, position: int, notice: Notice) -> None:
    """Apply a notice of the tier at a position. What is being computed began before it, and is not stored.

    Args:
        memory: of the cache.
        tiers: of the cache.
        position: of the tier; what it held itself has gone.
        notice: what went.

    Raises:
        ErasureHeld: a legal hold, or a minimum age, forbids the erasure in this process; nothing went.
    """
    if notice.key is not None:
        memory.delete(notice.key, "deleted by its key in another process")
        tiers.begin_delete(notice.key, before=position)
    else:
        memory.check_erasure(notice.subject, notice.tag)
        erase = partial(memory.erase, notice.subject, notice.tag)
        tiers.erase(notice.subject, notice.tag, erase, before=position)
