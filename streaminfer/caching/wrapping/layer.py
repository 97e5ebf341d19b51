"""What a cached service and a cached function have in common: looking into tiers, storing, refreshing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from streaminfer.caching.defensive_copy import strip_traceback
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flight_context import said_fresh_s, storable
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.wrapping._hit_path_cy import HitPath
from streaminfer.caching.wrapping.stale_if_error import RecentFailure
from streaminfer.errors import CircuitOpen, Closed, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory
    from streaminfer.caching.tiers.async_access import TierAccess
    from streaminfer.caching.tiers.lookup import TierLookup
    from streaminfer.caching.tiers.tier_hit import TierHit

__all__ = ["NEGATIVE", "OUTDATED", "STALE", "Layer"]

# states of `Miss`, as of `_table_cy`, besides that nothing is there
STALE = 2
NEGATIVE = 3
OUTDATED = 4

_PASSING = (CircuitOpen, Closed, DeadlineExceeded, Overloaded, TimeoutError)  # says nothing about the next call
_REFRESH_S = 10.0  # for a refresh where nothing was computed yet
_SHORTEST_REFRESH_S = 1.0
_REFRESH_TIMES = 4  # as long as the slowest computation of late


class Layer:
    """What a cached service and a cached function have in common."""

    def __init__(self, access: TierAccess, flights: SingleFlight, front: HitPath) -> None:
        self.access = access
        self.memory = cast("Memory", access.memory)
        self.flights = flights
        self.front = front
        self.tiers = access.tiers
        self._slowest_s = 0.0
        self._refreshes = Refreshes()
        self.failure = RecentFailure(front.now)
        self._computing: Callable[..., Coroutine[Any, Any, Any]]
        if self.tiers is not None:
            from streaminfer.caching.tiers.lookup import ReadBudget  # noqa: PLC0415 - only where there are tiers
            from streaminfer.caching.tiers.tier_hit import TierHit  # noqa: PLC0415 - the same

            self._stale_of_tier: Any = TierHit
            self._budget = ReadBudget()
        else:
            self._stale_of_tier = None

    def lookup(self, key: Any, deadline_ns: int | None, *, is_refresh: bool) -> TierLookup:
        """One look into the tiers and the computation that follows if they have nothing."""
        from streaminfer.caching.tiers.lookup import TierLookup  # noqa: PLC0415 - the same

        return TierLookup(self.access, self._budget, self.front.now, key, deadline_ns, is_refresh)

    def is_given(self, found: TierHit) -> bool:
        """Whether what a tier has is the answer as it is, however stale, with a refresh behind."""
        return found.past_ns < self.memory.revalidate_ns or self.failure.is_recent()

    def computed(self, begun_ns: int) -> None:
        """A computation ended well; of the slowest, each newer one forgets a sixteenth."""
        self._slowest_s = max((self.front.now() - begun_ns) / 1e9, self._slowest_s * 15 / 16)

    def refresh_s(self) -> float:
        """How long a refresh may take."""
        return max(_REFRESH_TIMES * self._slowest_s, _SHORTEST_REFRESH_S) if self._slowest_s else _REFRESH_S

    def refresh(self, key: Any, arguments: tuple[Any, ...]) -> None:
        """Computes a key behind its stale value, unless it is being computed or too many keys are."""
        self.flights.here().refresh(
            key,
            self._computing,
            arguments,
            self.front.now,
            refreshes=self._refreshes,
            limit_s=self.refresh_s(),
            owner=self,
        )

    def store(self, key: Any, value: Any, erasures: int, tags: Any, subject: str | None) -> None:
        """Keeps a value, if nothing speaks against it; an answer is an answer even where the cache refuses it."""
        if not storable():
            return
        memory = self.memory
        if memory.erased_since(key, erasures):
            self.flights.not_stored()
            return
        try:
            ttl_s = memory.freshness.response_ttl_s(said_fresh_s(), tags)
            kept = memory.put(key, value, ttl_s, tags, subject)
        except Exception as error:  # noqa: BLE001 - counted and logged; the caller has an answer
            self.flights.not_stored(error)
            return
        if memory.erased_since(key, erasures):  # by another thread, since the look above
            memory.take(key, None)
            kept = False
        if not kept:
            self.flights.not_stored()
        if self.tiers is not None:
            ttl_ns = memory.freshness.lasts_ns(ttl_s, tags)
            self.tiers.write(
                key,
                value,
                ttl_ns=ttl_ns,
                computed_ns=self.front.now(),
                erasures=erasures,
                tags=tags,
                subject=subject,
            )

    def store_error(self, key: Any, error: Exception, erasures: int, tags: Any, subject: str | None) -> None:
        """Keeps an error, where errors are kept and it says something about the next call."""
        if self.memory.freshness.negative_ttl_s <= 0.0 or isinstance(error, _PASSING):
            return
        if self.memory.erased_since(key, erasures) or not storable():
            return
        try:
            self.memory.put_negative(key, strip_traceback(error), None, tags, subject)
        except Exception as refused:  # noqa: BLE001 - as above: the caller gets the error itself
            self.flights.not_stored(refused)
