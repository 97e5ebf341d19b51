"""A look into the tiers by who leads a flight: for how long, what was found, and what it means for the next.

The tiers have what the computation can spare. A request that has ``left`` grants them ``min(1 s, left / 2, left - 9/8
slowest)``, where ``slowest`` is the longest of the computations before, of which each newer one forgets a sixteenth.
Where that is more than is left, only a tier can be in time, and the third term falls away. Where a computation came too
late after the tiers had used up all that they were granted, they are passed over once: what is computed then says how
long it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from streaminfer.caching.table._timer_wheel_cy import NEVER
from streaminfer.caching.tiers.machine_flight import MachineFlight

if TYPE_CHECKING:
    from streaminfer.caching.tiers.async_access import TierAccess
    from streaminfer.caching.tiers.protocol import Leases
    from streaminfer.caching.tiers.tier_hit import TierHit
    from streaminfer.caching.tiers.writer import TierWriter

__all__ = ["LONGEST_READ_NS", "ReadBudget", "TierLookup"]

LONGEST_READ_NS = 1_000_000_000


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


class TierLookup:
    """One look, and the computation that follows where nothing was found; enter it around that.

    Args:
        access: to memory and tiers.
        budget: of the layer.
        now: reads the cache's clock.
        key: what for.
        deadline_ns: of the request; ``None``: none.
        is_refresh: there is a stale answer already.

    Attributes:
        erasures: the cache's count when it began.
    """

    __slots__ = (
        "_access",
        "_budget",
        "_deadline_ns",
        "_flight",
        "_granted_ns",
        "_is_refresh",
        "_key",
        "_now",
        "_read_ns",
        "_started_ns",
        "erasures",
    )

    def __init__(
        self,
        access: TierAccess,
        budget: ReadBudget,
        now: Callable[[], int],
        key: Any,
        deadline_ns: int | None,
        is_refresh: bool,
    ) -> None:
        self._access = access
        self._budget = budget
        self._now = now
        self._key = key
        self._deadline_ns = deadline_ns
        self._is_refresh = is_refresh
        self._granted_ns = self._read_ns = self._started_ns = 0
        self._flight: MachineFlight | None = None
        self.erasures = access.memory.erasures

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
            found = await self._lead_or_wait(*tiers.leasing)
        return found

    async def _look(self, granted_ns: int, *, only_fresh: bool) -> TierHit | None:
        tiers: Any = self._access.tiers
        found: TierHit | None = await tiers.read(
            self._key, granted_ns=granted_ns, longest_ns=tiers.ttl_ns, only_fresh=only_fresh
        )
        if found is not None and not found.is_stale:
            self._access.promote(self._key, found, self.erasures)
        return found

    async def _lead_or_wait(self, worker: TierWriter, leases: Leases) -> TierHit | None:
        left_ns = None if self._deadline_ns is None else self._deadline_ns - self._now()
        wait_ns = self._budget.wait_ns(left_ns)
        if wait_ns <= 0:
            return None
        self._flight = MachineFlight(worker, leases, self._key)
        return await self._flight.begin(wait_ns / 1e9, partial(self._look, LONGEST_READ_NS, only_fresh=True))

    async def end(self) -> None:
        """The computation that followed is over, whatever came of it."""
        if self._flight is not None:
            await self._flight.end()

    def __enter__(self) -> Self:
        self._started_ns = self._now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        now_ns = self._now()
        if kind is None:
            self._budget.computed(now_ns - self._started_ns)
        elif self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self._budget.was_late(self._granted_ns, self._read_ns)
