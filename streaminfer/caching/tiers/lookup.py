"""A look into the tiers by who leads a flight: for how long, what was found, and what it means for the next.

The tiers have what the computation can spare. A request that has ``left`` grants them ``min(1 s, left / 2, left - 9/8
slowest)``, where ``slowest`` is the longest of the computations before, of which each newer one forgets a sixteenth.
Where that is more than is left, only a tier can be in time, and the third term falls away. Where a computation came too
late after the tiers had used up all that they were granted, they are passed over once: what is computed then says how
long it takes.

*Single flight across machines.* If a shared tier has leases, the leader of a flight takes that of its key before it
computes. While another machine has the lease, this one looks into the tiers for its entry, after pauses from 5 to
100 ms, until the entry is there, the lease is free (its holder died, and it expired), its holder had nothing to share,
or the time to wait is over; but for the first it then computes itself. A lease only ever saves work: it keeps no
machine from computing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import attrs

from streaminfer.caching.table._timer_wheel_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.caching.tiers.async_access import TierAccess
    from streaminfer.caching.tiers.protocol import Leases
    from streaminfer.caching.tiers.tier_reader import TierHit

__all__ = ["LONGEST_READ_NS", "ReadBudget", "TierLookup"]

LONGEST_READ_NS = 1_000_000_000
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1


class ReadBudget:
    """How long tiers may be asked, so that what they do not have can still be computed in time; for one service."""

    def __init__(self) -> None:
        self._slowest_ns = 0
        self._pass_over = False

    def grant_ns(self, left_ns: int | None) -> int:
        """Nanoseconds for the tiers; 0: they are not asked."""
        if left_ns is None:
            return LONGEST_READ_NS
        if self._pass_over:
            self._pass_over = False
            return 0
        spare_ns = left_ns - self._slowest_ns - (self._slowest_ns >> 3)
        half_ns = left_ns // 2  # where it is too late to compute anyway, only a tier can help
        return min(LONGEST_READ_NS, half_ns, spare_ns) if spare_ns > 0 else min(LONGEST_READ_NS, half_ns)

    def wait_ns(self, left_ns: int | None) -> int:
        """Nanoseconds to wait for another machine that computes; 0: there is no time."""
        if left_ns is None:
            return NEVER
        return min(left_ns // 2, left_ns - self._slowest_ns - (self._slowest_ns >> 3))

    def computed(self, took_ns: int) -> None:
        """A computation ended well."""
        self._slowest_ns = max(took_ns, self._slowest_ns - (self._slowest_ns >> 4))

    def was_late(self, granted_ns: int, read_ns: int) -> None:
        """A computation did not end by the deadline; before it the tiers took ``read_ns`` of what was granted."""
        self._pass_over = read_ns >= granted_ns > 0


@attrs.define(eq=False)
class TierLookup:
    """One look, and the computation that follows if nothing was found; enter it around that.

    Args:
        access: to memory and tiers.
        budget: of the layer.
        now: reads the cache's clock.
        key: what for.
        deadline_ns: of the request; ``None``: none.
        is_refresh: there is a stale response already.

    Attributes:
        erasures: the cache's count when it began.
    """

    _access: TierAccess
    _budget: ReadBudget
    _now: Callable[[], int]
    _key: Any
    _deadline_ns: int | None
    _is_refresh: bool
    erasures: int = attrs.field(init=False)
    _granted_ns: int = attrs.field(default=0, init=False)
    _read_ns: int = attrs.field(default=0, init=False)
    _started_ns: int = attrs.field(default=0, init=False)
    _token: bytes | None = attrs.field(default=None, init=False)  # by which it asked for a lease

    def __attrs_post_init__(self) -> None:
        self.erasures = self._access.memory.erasures

    async def find(self) -> TierHit | None:
        """What the tiers have; a fresh answer is in memory now."""
        tiers = self._access.tiers
        begun_ns = self._now()
        left_ns = None if self._deadline_ns is None else self._deadline_ns - begun_ns
        self._granted_ns = self._budget.grant_ns(left_ns)
        if tiers is None or self._granted_ns <= 0:
            return None
        found = await self._look(self._granted_ns, only_fresh=self._is_refresh)
        self._read_ns = self._now() - begun_ns
        if found is None and tiers.leasing is not None and tiers.run_here:
            found = await self._lead_or_wait(tiers.leasing[1])
        return found

    async def _look(self, granted_ns: int, *, only_fresh: bool) -> TierHit | None:
        tiers: Any = self._access.tiers
        found: TierHit | None = await tiers.read(
            self._key, granted_ns=granted_ns, longest_ns=tiers.ttl_ns, only_fresh=only_fresh
        )
        if found is not None and not found.is_stale:
            self._access.promote(self._key, found, self.erasures)
        return found

    async def _lead_or_wait(self, leases: Leases) -> TierHit | None:
        """Take the lease, or wait for the entry of its holder; ``None``: compute it."""
        left_ns = None if self._deadline_ns is None else self._deadline_ns - self._now()
        wait_ns = self._budget.wait_ns(left_ns)
        if wait_ns <= 0:
            return None
        self._token = os.urandom(16)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait_ns / 1e9, leases.lease_s)
        pause_s = _FIRST_PAUSE_S
        while not await leases.take(self._key, self._token):
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = await self._look(LONGEST_READ_NS, only_fresh=True)
            if found is not None:
                return found
        return None

    async def end(self) -> None:
        """Note that the computation is over: unless a write of it is queued, other machines need not wait for one."""
        tiers: Any = self._access.tiers
        if self._token is not None and not tiers.leasing[0].has_queued(self._key):
            await tiers.leasing[1].open(self._key, self._token)

    def __enter__(self) -> Self:
        self._started_ns = self._now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        now_ns = self._now()
        if kind is None:
            self._budget.computed(now_ns - self._started_ns)
        elif self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self._budget.was_late(self._granted_ns, self._read_ns)
