"""Flight of the running computation, as a context variable, and how the callers of a flight learn its outcome.

Tasks, and threads started by ``asyncio.to_thread``, inherit the context variable. If a computation waits for a thread
that does not inherit it, and that thread requests the same key, both wait for ever, as with any lock.
"""

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import new_awaited_lock
from streaminfer._internal.validation import check_duration
from streaminfer.caching.single_flight._flight_cy import Flight, FlightCounts, FlightTable
from streaminfer.errors import copy_error

__all__ = ["CURRENT_FLIGHT", "FLIGHTS_LOCK", "FlightContext", "Flights", "attempt", "fresh_for", "no_store"]

LOG = Log("streaminfer.caching")

FLIGHTS_LOCK = new_awaited_lock()  # so that no table is half changed in a forked child
"""One lock for all flight tables, because flights of different caches can wait for each other."""


@attrs.define(eq=False)
class FlightContext:
    """Computation that runs in this context.

    Attributes:
        flight: the flight that it computes.
        store: whether its result may be stored.
        fresh_s: seconds for which its result is fresh, if it called `fresh_for`.
    """

    flight: Flight
    store: bool = True
    fresh_s: float | None = None


CURRENT_FLIGHT: contextvars.ContextVar[FlightContext | None] = contextvars.ContextVar(
    "streaminfer_computation", default=None
)


@contextmanager
def attempt(flight: Flight) -> Iterator[None]:
    """Compute a flight in this block; at its end the flight knows whether the value may be stored."""
    context = FlightContext(flight)
    token = CURRENT_FLIGHT.set(context)
    try:
        yield
        flight.discards = not context.store
    finally:
        CURRENT_FLIGHT.reset(token)


class Flights(ABC):
    """Flights of the tasks of one event loop, or of threads. A caller is a future of a value and whether it led.

    Args:
        counts: counts of the cache.
        now: reads the cache's clock.

    Attributes:
        table: the flights.
    """

    def __init__(self, counts: FlightCounts, now: Callable[[], int]) -> None:
        self.table = FlightTable(counts, _waits)
        self._now = now

    @abstractmethod
    def _lead(self, flight: Flight, leader: Any) -> None:
        """Make a waiting caller compute."""

    def _succeed(self, flight: Flight, value: Any) -> None:
        leader = flight.leader
        with FLIGHTS_LOCK:
            callers = self.table.succeed(flight)
        for caller in callers:
            if not caller.done():  # without a call of `_waits`, because the first caller waits for this loop
                caller.set_result((value, caller is leader))

    def _fail(self, flight: Flight, error: BaseException, **options: bool) -> None:
        """End the current attempt as `FlightTable.fail` does, log the error if it is new, and notify the callers."""
        original = flight.leader
        with FLIGHTS_LOCK:
            callers, leader, is_news = self.table.fail(flight, error, **options)
        if is_news:
            text = "a refresh behind a stale value failed; others are only counted until one succeeds: %s: %s"
            LOG.warning(text, type(error).__name__, error, exc_info=error)
        for caller in filter(_waits, callers):
            caller.set_exception(error if caller is original else copy_error(error))
        if leader is not None:
            self._lead(flight, leader)


def _waits(caller: Any) -> bool:
    """Return whether a caller can still be notified, and may lead."""
    return not caller.done()


def no_store() -> None:
    """Prevent the cache from storing the result of the running computation; its waiters still get the result.

    Does nothing outside a cached computation.
    """
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.store = False


def fresh_for(seconds: float) -> None:
    """Limit the time for which the result of the running computation is fresh; the cache's ``ttl_s`` still applies.

    Of several calls, the shortest time counts. Does nothing outside a cached computation. A backend behind a batcher
    does not run in a caller's context: call this in a service around the batcher, with a time from the response.

    Args:
        seconds: from the instant at which the result is stored, ≥ 0; 0: it is stale at once.

    Raises:
        TypeError, ValueError: ``seconds`` is not a duration.
    """
    checked = check_duration("seconds", seconds)
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.fresh_s = checked if inside.fresh_s is None else min(inside.fresh_s, checked)
