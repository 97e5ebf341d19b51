"""Single flight of one cache, by the rules of ``_flight_cy``: for tasks and for threads."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop
from collections.abc import Callable

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.caching.single_flight._flight_cy import FlightCounts
from streaminfer.caching.single_flight._loop_flights_cy import LoopFlights
from streaminfer.caching.single_flight.flight_context import FLIGHTS_LOCK, LOG
from streaminfer.caching.single_flight.thread_flights import ThreadFlights

__all__ = ["FlightStatistics", "SingleFlight"]


@attrs.frozen(kw_only=True)
class FlightStatistics(Snapshot):
    """Counts of single flight since the cache was made.

    Attributes:
        computations: attempts: the first of each flight, those after a failure, and refreshes.
        collapsed: callers that waited for another caller's computation.
        failures: attempts that ended with an error, refreshes included.
        leader_changes: attempts that a waiter began after the one before had failed.
        abandoned: computations cancelled because no caller waited for them.
        refreshes: computations behind a stale value.
        refresh_failures: refreshes that failed or were late. The first after a success is logged as a warning of
            ``streaminfer.caching``.
        not_stored: results that callers got and the cache did not store: it rejected them, or their key was erased
            while they were computed.
        in_flight: computations that run now, refreshes included.
    """

    computations: int
    collapsed: int
    failures: int
    leader_changes: int
    abandoned: int
    refreshes: int
    refresh_failures: int
    not_stored: int
    in_flight: int


class SingleFlight:
    """Flights of one cache, of threads and of event loops; ``now`` reads the cache's clock."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.counts = FlightCounts()
        self.threads = ThreadFlights(self.counts, now)
        self._now = now
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlights] = weakref.WeakKeyDictionary()
        self._latest: LoopFlights | None = None

    def here(self) -> LoopFlights:
        """Return the flights of the running event loop."""
        loop = get_running_loop()
        latest = self._latest  # nearly always: a look into the dictionary costs as much as joining a flight
        if latest is not None and latest.loop() is loop:
            return latest
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = LoopFlights(loop, self.counts, self._now)
        self._latest = found
        return found

    def not_stored(self, error: Exception | None = None) -> None:
        """Count a result that was not stored, and log why the cache rejected it."""
        with FLIGHTS_LOCK:
            self.counts.not_stored += 1
        if error is not None:
            LOG.warning("a result was not stored: %s: %s", type(error).__name__, error, exc_info=error)

    def statistics(self) -> FlightStatistics:
        """Return a frozen snapshot."""
        with FLIGHTS_LOCK:
            running = len(self.threads.table) + sum(len(flights.table) for flights in list(self._loops.values()))
            return FlightStatistics(in_flight=running, **{name: getattr(self.counts, name) for name in _COUNTED})


_COUNTED = tuple(field.name for field in attrs.fields(FlightStatistics) if field.name != "in_flight")
