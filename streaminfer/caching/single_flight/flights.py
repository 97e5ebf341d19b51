"""Single flight of one cache, by the rules of ``_flight_cy``: for tasks and for threads."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.caching.single_flight._flight_cy import FlightCounts
from streaminfer.caching.single_flight._loop_flights_cy import LoopFlights
from streaminfer.caching.single_flight.flight_context import BOARDS, LOG
from streaminfer.caching.single_flight.thread_flights import ThreadFlights

__all__ = ["FlightStatistics", "SingleFlight"]

_MOST_ATTEMPTS = 3
_PAUSE_NS = 1_000_000_000


@attrs.frozen(kw_only=True)
class FlightStatistics(Snapshot):
    """What single flight did; counts since the cache was made.

    Attributes:
        computations: attempts begun: the first, those after a failure, and refreshes.
        joined: callers that found their key being computed and waited.
        failures: attempts that ended with an error, refreshes included.
        handed_over: attempts begun by a caller that had waited, since the one before had failed.
        abandoned: computations cancelled because nobody waited any more.
        refreshes: computations begun behind a stale answer.
        refresh_failures: of these, how many failed or were late; the first after a success is logged as well, as a
            warning of ``streaminfer.caching``.
        not_stored: answers that were given and not kept though they might have been: the cache refused them, or
            something was erased while they were computed.
        in_the_air: computations that somebody waits for, and refreshes, at present.
    """

    computations: int
    joined: int
    failures: int
    handed_over: int
    abandoned: int
    refreshes: int
    refresh_failures: int
    not_stored: int
    in_the_air: int


class SingleFlight:
    """All that is being computed for one cache, by threads and on event loops; a cache has one."""

    def __init__(self) -> None:
        self.counts = FlightCounts()
        self.threads = ThreadFlights(self.counts, _MOST_ATTEMPTS, _PAUSE_NS)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlights] = weakref.WeakKeyDictionary()
        self._latest: LoopFlights | None = None

    def here(self) -> LoopFlights:
        """Those of the running event loop."""
        loop = get_running_loop()
        latest = self._latest  # nearly always: to look in the table of loops costs as much as to join a flight
        if latest is not None and latest.loop() is loop:
            return latest
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = LoopFlights(loop, self.counts, _MOST_ATTEMPTS, _PAUSE_NS)
        self._latest = found
        return found

    def not_stored(self, refusal: Exception | None = None) -> None:
        """Counts an answer that could not be kept, and logs why the cache refused it."""
        with BOARDS:
            self.counts.not_stored += 1
        if refusal is not None:
            LOG.warning("an answer was not kept: %s: %s", type(refusal).__name__, refusal, exc_info=refusal)

    def statistics(self) -> FlightStatistics:
        """A frozen snapshot."""
        with BOARDS:
            flying = len(self.threads.board) + sum(len(flights.board) for flights in list(self._loops.values()))
            return FlightStatistics(in_the_air=flying, **{name: getattr(self.counts, name) for name in _COUNTED})


_COUNTED = tuple(field.name for field in attrs.fields(FlightStatistics) if field.name != "in_the_air")
