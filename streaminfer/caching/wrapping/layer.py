"""What cached services and cached functions have in common: looking into tiers, storing, refreshing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from streaminfer.caching.defensive_copy import copy_error, strip_traceback
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flight_context import said_fresh_s, storable
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss
from streaminfer.caching.wrapping.stale_if_error import RecentFailure
from streaminfer.errors import CircuitOpen, Closed, DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from streaminfer.caching.tiers.async_access import TierAccess
    from streaminfer.caching.tiers.tier_reader import TierHit

__all__ = ["NEGATIVE", "OUTDATED", "Layer"]

# states of `Miss`, as of `_table_cy`, besides that nothing is there
STALE = 2
NEGATIVE = 3
OUTDATED = 4

_TRANSIENT = (CircuitOpen, Closed, DeadlineExceeded, Overloaded, TimeoutError)  # says nothing about the next call
_REFRESH_S = 10.0  # for a refresh before anything was computed
_MIN_REFRESH_S = 1.0
_REFRESH_FACTOR = 4  # of the slowest recent computation


class Layer:
    """Misses of one wrapped service or function.

    Args:
        access: to memory and tiers of the cache.
        flights: of the cache.
        hit_path: finds and makes keys.
    """

    def __init__(self, access: TierAccess, flights: SingleFlight, hit_path: HitPath) -> None:
        self.access = access
        self.memory = access.memory
        self.flights = flights
        self.hit_path = hit_path
        self.tiers = access.tiers
        self._slowest_s = 0.0
        self._refreshes = Refreshes()
        self.failure = RecentFailure(hit_path.now)
        self._computing: Callable[..., Coroutine[Any, Any, Any]]
        if self.tiers is not None:
            from streaminfer.caching.tiers.lookup import ReadBudget  # noqa: PLC0415 - only where there are tiers
            from streaminfer.caching.tiers.tier_reader import TierHit  # noqa: PLC0415 - the same

            self._tier_hit: Any = TierHit
            self._budget = ReadBudget()
        else:
            self._tier_hit = None

    async def read_or_compute(
        self,
        key: Any,
        deadline_ns: int | None,
        stores_errors: bool,
        compute: Callable[[bool, int], Awaitable[Any]],
        make_fresh: Callable[[TierHit], Any],
    ) -> Any:
        """Return what the tiers have of a key, else what a computation returns.

        Args:
            key: of the value.
            deadline_ns: of the request; ``None``: none.
            stores_errors: whether errors of the computation are stored; a refresh stores none.
            compute: begins the computation; takes whether it stores errors, and the erasures before it.
            make_fresh: makes the result of a fresh hit; a stale one is returned itself.
        """
        from streaminfer.caching.tiers.lookup import TierLookup  # noqa: PLC0415 - only with tiers

        is_refresh = not stores_errors
        lookup = TierLookup(self.access, self._budget, self.hit_path.now, key, deadline_ns, is_refresh)
        found = await lookup.find()
        if found is not None and not found.is_stale:
            return make_fresh(found)
        if found is not None and self.is_usable(found):
            return found
        try:
            with lookup:
                return await compute(stores_errors and found is None, lookup.erasures)
        except Exception as error:
            if found is None:
                raise
            self.failure.note(error)
            return found
        finally:
            await lookup.end()

    def is_usable(self, found: TierHit) -> bool:
        """Return whether a stale value of a tier is the response at once, with a refresh behind it."""
        return found.past_ns < self.memory.revalidate_ns or self.failure.is_recent()

    def gives_stale(self, missed: Miss) -> bool:
        """Return whether what memory has is the response at once, with a refresh behind it. Raises a stored error."""
        if missed.state == NEGATIVE:
            raise copy_error(missed.value)
        return missed.state == STALE or (missed.state == OUTDATED and self.failure.is_recent())

    def computed(self, begun_ns: int) -> None:
        """Note the duration of a computation that succeeded; each newer one takes a sixteenth off the slowest."""
        self._slowest_s = max((self.hit_path.now() - begun_ns) / 1e9, self._slowest_s * 15 / 16)

    def refresh_s(self) -> float:
        """Return how long a refresh may take, seconds."""
        return max(_REFRESH_FACTOR * self._slowest_s, _MIN_REFRESH_S) if self._slowest_s else _REFRESH_S

    def refresh(self, key: Any, arguments: tuple[Any, ...]) -> None:
        """Refresh a key behind its stale value, unless it is in flight or too many keys are."""
        self.flights.here().refresh(
            key,
            self._computing,
            arguments,
            self.hit_path.now,
            refreshes=self._refreshes,
            limit_s=self.refresh_s(),
            owner=self,
        )

    def store(self, key: Any, value: Any, erasures: int, tags: Any, subject: str | None) -> None:
        """Store a value, if nothing forbids it; callers get it even if the cache rejects it."""
        if not storable():
            return
        memory = self.memory
        if memory.erased_since(key, erasures):
            self.flights.not_stored()
            return
        try:
            ttl_s = memory.freshness.response_ttl_s(said_fresh_s(), tags)
            stored = memory.put(key, value, ttl_s, tags, subject)
        except Exception as error:  # noqa: BLE001 - counted and logged; the caller has the value
            self.flights.not_stored(error)
            return
        if memory.erased_since(key, erasures):  # by another thread, since the look above
            memory.take(key, None)
            stored = False
        if not stored:
            self.flights.not_stored()
        if self.tiers is not None:
            ttl_ns = memory.freshness.lasts_ns(ttl_s, tags)
            self.tiers.write(
                key,
                value,
                ttl_ns=ttl_ns,
                computed_ns=self.hit_path.now(),
                erasures=erasures,
                tags=tags,
                subject=subject,
            )

    def store_error(self, key: Any, error: Exception, erasures: int, tags: Any, subject: str | None) -> None:
        """Store an error, if errors are stored and it says something about the next call."""
        if self.memory.freshness.negative_ttl_s <= 0.0 or isinstance(error, _TRANSIENT):
            return
        if self.memory.erased_since(key, erasures) or not storable():
            return
        try:
            self.memory.put_negative(key, strip_traceback(error), None, tags, subject)
        except Exception as failure:  # noqa: BLE001 - as above: the caller gets the error itself
            self.flights.not_stored(failure)
