"""What another process deleted or erased in a shared tier goes here as well: from memory, and the tiers before it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.tiers.notices import Notice
    from streaminfer.caching.tiers.tier_set import TierSet

__all__ = ["drop"]


def drop(cache: EdgeCache, tiers: TierSet, position: int, notice: Notice) -> None:
    """Takes a notice of the tier at a position. What is computed at present was begun before, and is not stored.

    Args:
        cache: whose memory.
        tiers: of the cache.
        position: of the tier that has the notice; what it holds itself has gone.
        notice: what went.

    Raises:
        ErasureHeld: a legal hold, or a minimum age, that this process knows of forbids the erasure; nothing went.
    """
    if notice.key is not None:
        if cache.discard(notice.key) and cache._ledger is not None:
            cache._ledger.count("removed", "memory", "", "deleted by its key in another process")
        tiers.begin_delete(notice.key, before=position)
    else:
        if cache._custody is not None:
            cache._custody.check(notice.subject, notice.tag)
        erase = partial(cache._erase_memory, notice.subject, notice.tag)
        tiers.erase(notice.subject, notice.tag, erase, before=position)
