"""Common part of cached services and cached functions: reading tiers, storing, refreshing.

*Single flight across machines.* If a shared tier has leases, the leader of a flight takes the lease of its key before
it computes. While another machine has the lease, the leader looks into the tiers for the entry, after pauses from 5 to
100 ms. It stops waiting when the entry is there, when it gets the lease (the holder had nothing to share, or died and
the lease expired), or when its time to wait is over. Unless it found the entry, it then computes the value itself. A
lease only saves work: it never prevents a machine from computing.

*Stale in place of errors* (RFC 5861). For one second after a stale value replaced a failure, outdated values are the
response at once and are refreshed in the background. Callers therefore do not each wait for a backend that is down.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from streaminfer.caching.defensive_copy import strip_traceback
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT, LOG
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.tiers.read_budget import ReadBudget
from streaminfer.caching.tiers.tier_wait import TierWait
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss
from streaminfer.errors import CircuitOpen, Closed, DeadlineExceeded, InvalidInput, Overloaded, copy_error

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.freshness import About
    from streaminfer.caching.tiers.protocol import Tier, TierHit

__all__ = ["NEGATIVE", "OUTDATED", "Layer"]

# states of a `Miss`, as in `_table_cy`, except for missing
STALE = 2
NEGATIVE = 3
OUTDATED = 4

_TRANSIENT = (CircuitOpen, Closed, DeadlineExceeded, Overloaded, TimeoutError)  # say nothing about the next call
_RECENT_NS = 1_000_000_000  # as long as a key pauses after a failed refresh
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1
_ABSENT: Any = object()


class Layer(ABC):
    """Misses of one wrapped service or function.

    Args:
        cache: the cache, whose memory, flights and tiers it uses.
        hit_path: makes keys and looks them up.
    """

    def __init__(self, cache: EdgeCache, hit_path: HitPath) -> None:
        self.memory = cache._memory
        self.now = cache._memory.now
        self.flights: SingleFlight = cache._flights
        self.hit_path = hit_path
        self.tiers = cache.tiers
        self.budget = ReadBudget()
        self._failing_until_ns = 0
        self._refreshes = Refreshes()
        self._computing = self._compute if self.tiers is None else self._use_tiers

    @abstractmethod
    async def _compute(self, key: Any, call: Any, stores_errors: bool, erasures: int | None = None) -> Any:
        """Compute and store a value.

        Args:
            key: of the value.
            call: the request or call that computes it.
            stores_errors: whether to store an error; a refresh stores none.
            erasures: ``erasures`` of the memory before the tiers were read; ``None``: they were not read.
        """

    @abstractmethod
    def _about(self, call: Any) -> About:
        """Return subject and tags of a request or call."""

    def _deadline_ns(self, call: Any) -> int | None:  # noqa: ARG002 - functions have none
        """Return the deadline of the first caller."""
        return None

    # -- tiers --------------------------------------------------------------------------------------------------

    async def _use_tiers(self, key: Any, call: Any, stores_errors: bool) -> Any:
        """Return the entry of a key from the tiers, a `TierHit`, else the result of ``_compute``."""
        inside: Any = CURRENT_FLIGHT.get()  # a computation always runs in a flight
        flight = inside.flight
        flight.tier_wait = wait = TierWait()
        for caller in flight.waiting:  # callers that joined before this attempt began
            if caller.expires_s is not None and caller is not flight.leader:
                self._shorten(wait, round((caller.expires_s - asyncio.get_running_loop().time()) * 1e9))
        tiers: Any = self.tiers
        with tiers.underway(key):
            return await self._read_or_compute(key, call, stores_errors, wait)

    def shorten_wait(self, flight_key: Any, left_ns: int) -> None:
        """Limit the time that the tiers take in a flight to what a joining caller can spare."""
        flight = self.flights.here().table.flight(flight_key)
        if flight is not None and flight.tier_wait is not None:
            self._shorten(flight.tier_wait, left_ns)

    def _shorten(self, wait: TierWait, left_ns: int) -> None:
        spare_ns = self.budget.spare_ns(left_ns)
        if spare_ns > 0:
            wait.shorten(asyncio.get_running_loop().time() + spare_ns / 1e9)

    async def _read_or_compute(self, key: Any, call: Any, stores_errors: bool, wait: TierWait) -> Any:
        tiers: Any = self.tiers
        now, budget = self.now, self.budget
        erasures = self.memory.erasures
        deadline_ns = self._deadline_ns(call)
        hit: TierHit | None = None
        token: bytes | None = None  # identifies its request for a lease
        begun_ns = now()
        granted_ns = budget.grant_ns(self._left_ns(deadline_ns))
        read_ns = wait_ns = 0
        if granted_ns > 0:
            longest_ns = self.memory.freshness.ttl_ns
            hit = await tiers.read(
                key, granted_ns=granted_ns, longest_ns=longest_ns, only_fresh=not stores_errors, wait=wait
            )
            read_ns = now() - begun_ns
            granted_ns = read_ns if wait.is_over else granted_ns
            if hit is None and tiers.leasing is not None and tiers.run_here:
                wait_ns = budget.spare_ns(self._left_ns(deadline_ns))
        try:
            if wait_ns > 0:
                token = os.urandom(16)
                hit, leads = await self._lead_or_wait(key, token, wait_ns, deadline_ns, wait)
                token = token if leads else None
            if hit is not None:
                past_ns = now() - hit.computed_ns - hit.fresh_ns
                if not hit.is_stale or past_ns < self.memory.revalidate_ns or self.fails_now():
                    return hit  # if it is stale, `follow_up` refreshes it
            return await self._compute(key, call, stores_errors and hit is None, erasures)
        except BaseException as error:
            if deadline_ns is not None and now() >= deadline_ns:
                budget.was_late(granted_ns, read_ns)
            if hit is None or not self.replaces(error, key, call, (erasures, hit.until_ns)):
                raise
            return hit
        finally:
            if token is not None:
                tiers.leasing.open_lease(key, token)

    def _left_ns(self, deadline_ns: int | None) -> int | None:
        """Return the nanoseconds until a deadline; ``None`` without one."""
        return None if deadline_ns is None else deadline_ns - self.now()

    async def _lead_or_wait(
        self, key: Any, token: bytes, wait_ns: int, deadline_ns: int | None, wait: TierWait
    ) -> tuple[TierHit | None, bool]:
        """Wait for the entry from the holder of a key's lease, or take the lease.

        Returns:
            The entry, or ``None`` if this machine must compute it; and whether it may hold the lease.
        """
        tiers: Any = self.tiers
        tier: Tier = tiers.leasing.tier
        read = partial(tiers.read, key, longest_ns=self.memory.freshness.ttl_ns, only_fresh=True, wait=wait)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait_ns / 1e9, tier.lease_s)
        pause_s = _FIRST_PAUSE_S
        with suppress(TimeoutError), wait.limit(until) as limit:
            async with limit:
                while not await tier.take_lease(key, token):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    hit = await read(granted_ns=self.budget.grant_ns(self._left_ns(deadline_ns)))
                    if hit is not None:
                        return hit, False
        # another holder may have written the entry since the last look
        return await read(granted_ns=self.budget.grant_ns(self._left_ns(deadline_ns))), True

    def flight_key(self, key: Any, call: Any) -> Any:
        """Return the key of a flight; callers after a deletion or erasure do not join a flight from before it."""
        return self._edition_of(key, call)

    def _edition_of(self, key: Any, call: Any) -> Any:
        """Return a key, with the number of its latest deletion or erasure."""
        edition = self.memory.edition(key, self._about(call))
        return (key, edition) if edition else key

    # -- stale values and errors ----------------------------------------------------------------------------------

    def fails_now(self) -> bool:
        """Return whether a stale value replaced a failure less than a second ago."""
        return self.now() < self._failing_until_ns

    def replaces(self, error: BaseException, key: Any, call: Any, fallback: tuple[int, int]) -> bool:
        """Return whether a stale value replaces an error: it was not erased meanwhile, and its time has not passed.

        It replaces any error except `InvalidInput`. The first replacement in a second is logged.

        Args:
            error: of the computation.
            key: of the value.
            call: the request or call that should have computed it.
            fallback: ``erasures`` of the memory when the value was found, and the instant until which it can be used.
        """
        erasures, until_ns = fallback
        if isinstance(error, InvalidInput) or not isinstance(error, Exception) or self.now() >= until_ns:
            return False
        if self.memory.erased_since(key, self._about(call), erasures):
            return False
        if not self.fails_now():
            text = "an outdated value was used in place of an error: %s: %s"
            LOG.warning(text, type(error).__name__, error, exc_info=error)
        self._failing_until_ns = self.now() + _RECENT_NS
        return True

    def gives_stale(self, missed: Miss) -> bool:
        """Return whether the stale value is the response at once, with a refresh behind it; raise a stored error."""
        if missed.state == NEGATIVE:
            raise copy_error(missed.value)
        return missed.state == STALE or (missed.state == OUTDATED and self.fails_now())

    def refresh(self, key: Any, call: Any) -> None:
        """Refresh a key in the background, unless it is in flight or too many keys are."""
        work, limit_s = (self._computing, key, call, False), self.budget.refresh_s()
        flight_key, entry, flights = self.flight_key(key, call), self._edition_of(key, call), self.flights.here()
        flights.refresh(flight_key, work, refreshes=self._refreshes, limit_s=limit_s, owner=self, entry=entry)

    def follow_up(self, hit: TierHit, led: bool, key: Any, call: Any) -> None:
        """Refresh a key whose stale value came from a tier, once for all callers."""
        if hit.is_stale and led and not self.fails_now():
            self.refresh(key, call)

    def store(self, key: Any, about: About, erasures: int, value: Any) -> None:
        """Store a value, unless `no_store`, a newer value or an erasure forbids it; callers get it in any case."""
        context: Any = CURRENT_FLIGHT.get()  # a computation always runs in a flight
        if not context.store:
            return
        memory = self.memory
        if memory.peek(key, _ABSENT) is not _ABSENT:  # a value that was put during the computation is newer
            self.flights.not_stored()
            return
        try:
            ttl_s = memory.freshness.response_ttl_s(context.fresh_s, about[1])
            stored = memory.put(key, value, ttl_s, about, erasures=erasures)
        except Exception as error:  # noqa: BLE001 - counted and logged; the caller has the value
            self.flights.not_stored(error)
            return
        if not stored:
            self.flights.not_stored()
        if self.tiers is not None and not memory.erased_since(key, about, erasures):
            self.tiers.write(key, value, memory.freshness.lasts_ns(ttl_s, about[1]), about)

    def store_error(self, key: Any, about: About, erasures: int, error: Exception, is_first: bool) -> None:
        """Store an error, if errors are stored and it says something about the next call.

        Args:
            key: of the value that was not computed.
            about: its subject and tags.
            erasures: ``erasures`` of the memory before the computation.
            error: the error of the computation.
            is_first: whether there is no stale value, which an error must not replace.
        """
        context: Any = CURRENT_FLIGHT.get()
        if not is_first or self.memory.freshness.negative_ttl_s <= 0.0 or not context.store:
            return
        if isinstance(error, _TRANSIENT):
            return
        try:
            self.memory.put_negative(key, strip_traceback(error), None, about, erasures)
        except Exception as failure:  # noqa: BLE001 - as above: the caller gets the error itself
            self.flights.not_stored(failure)
