"""Flight of the running computation, as a context variable, and the lock of all flight tables.

Tasks, and threads started by ``asyncio.to_thread``, inherit the context variable. If a computation waits for a thread
that does not inherit it, and that thread requests the same key, both wait for ever, as with any lock.
"""

import contextvars
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import new_awaited_lock
from streaminfer._internal.validation import check_duration
from streaminfer.caching.single_flight._flight_cy import Flight, FlightTable

__all__ = ["CURRENT_FLIGHT", "FLIGHTS_LOCK", "FlightContext", "end_attempt", "enter", "fresh_for", "no_store"]

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


def enter(flight: Flight) -> contextvars.Token[FlightContext | None]:
    """Begin an attempt of a flight in the current context."""
    return CURRENT_FLIGHT.set(FlightContext(flight))


def end_attempt(table: FlightTable, flight: Flight, error: BaseException, **options: bool) -> tuple[list[Any], Any]:
    """End the current attempt of a flight with an error, as `FlightTable.fail` does, and log the error if it is new.

    Returns:
        The callers to notify, and the next leader or ``None``.
    """
    with FLIGHTS_LOCK:
        callers, leader, is_news = table.fail(flight, error, **options)
    if is_news:
        text = "a refresh behind a stale value failed; others are only counted until one succeeds: %s: %s"
        LOG.warning(text, type(error).__name__, error, exc_info=error)
    return callers, leader


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
