"""Reads of the tiers of one cache: the fastest tier first, within the time that the request can spare."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.erasure.erasure import PendingErasure, is_erased
from streaminfer.caching.table._slots_cy import NEVER
from streaminfer.caching.tiers.protocol import Entry, TierHit
from streaminfer.caching.tiers.writer import TierWriter

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory

__all__ = ["in_ns", "read_tiers"]

_LOGGER = logging.getLogger("streaminfer.caching")


async def read_tiers(
    workers: Sequence[TierWriter],
    memory: Memory,
    key: str | bytes,
    granted_ns: int,
    longest_ns: int,
    only_fresh: bool,
) -> TierHit | None:
    """Return a fresh value of the fastest tier that has one, else a stale one, else ``None``.

    Nothing is returned if the key was erased or deleted meanwhile, because the value may be what was.

    Args:
        workers: of the tiers, the fastest first.
        memory: of the cache.
        key: whose value.
        granted_ns: how long the tiers may take together.
        longest_ns: how long a value is fresh at most, from when it was computed.
        only_fresh: no stale value.
    """
    erasures = memory.erasures
    until = asyncio.get_running_loop().time() + granted_ns / 1e9
    stale: TierHit | None = None
    for worker in workers:
        limit = asyncio.timeout_at(until)
        pending = worker.pending  # one that is done before the tier responds concerns what it read all the same
        try:
            async with limit:
                entry = await worker.tier.get(key)
        except Exception as error:
            worker.read_timeouts += 1
            if limit.expired():
                break
            _LOGGER.warning("the tier %s failed on a read: %s", worker.name, error, exc_info=error)
            continue
        if memory.erased_since(key, erasures):
            worker.discarded += 1
            return None
        hit = _judge(worker, memory, key, entry, longest_ns, pending)
        if hit is not None and not hit.is_stale:
            return hit
        stale = stale or hit
    if stale is None or only_fresh or memory.erased_since(key, erasures):
        return None
    return stale if memory.now() < stale.usable_until_ns else None  # slower tiers took their time


def _judge(
    worker: TierWriter,
    memory: Memory,
    key: str | bytes,
    entry: Entry | None,
    longest_ns: int,
    pending: tuple[PendingErasure, ...],
) -> TierHit | None:
    """Count a read of one tier, and return what may be used of it."""
    if entry is None:
        worker.misses += 1
        return None
    policy, longest_stale_ns = memory.freshness.policy, memory.freshness.stale_ns
    rule = None if policy is None else policy.rule(entry.tags)
    disallowed = rule is not None and not rule.permits(worker.tier)
    if disallowed or is_erased(entry, pending) or worker.is_replaced(key, entry):
        worker.discarded += 1
        return None
    age_ns = max(worker.tier.wall_clock() - entry.stored_ns, 0)
    stale_ns = min(in_ns(entry.stale_s), longest_stale_ns)
    fresh_ns = longest_ns
    if entry.ttl_s is not None:
        fresh_ns = min(fresh_ns, max(in_ns(entry.ttl_s) - in_ns(entry.stale_s), 0))
    if rule is not None:
        fresh_ns = min(fresh_ns, in_ns(rule.max_age_s) - longest_stale_ns)
    if fresh_ns != NEVER and age_ns >= fresh_ns + stale_ns:
        worker.misses += 1
        return None
    is_stale = age_ns >= fresh_ns
    worker.stale_hits += is_stale
    worker.hits += not is_stale
    computed_ns = memory.now() - age_ns
    instants = (NEVER, NEVER) if fresh_ns == NEVER else (computed_ns + fresh_ns, computed_ns + fresh_ns + stale_ns)
    labels, place = (tuple(sorted(entry.tags)), entry.subject), (worker.name, worker.position)
    return TierHit(freeze(entry.value), *labels, *place, computed_ns, *instants, is_stale)


def in_ns(seconds: float) -> int:
    """Return seconds as whole nanoseconds."""
    return round(seconds * 1e9)
