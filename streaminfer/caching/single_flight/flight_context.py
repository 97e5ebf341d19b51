"""Flight of the running computation, as a context variable, and the lock of all flight tables.

Tasks, and threads started by ``asyncio.to_thread``, inherit the context variable. A thread that does not inherit it
waits for ever if it calls for the key that it computes, as with any lock.
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

FLIGHTS_LOCK = new_awaited_lock()  # no table is in the middle of a change in a child
"""One for all flight tables: the graph of flights that wait for each other goes from cache to cache."""


@attrs.define(eq=False)
class FlightContext:
    """Computation that runs in this context.

    Attributes:
        flight: what it computes.
        store: whether its result may be stored.
        fresh_s: seconds for which its result is fresh, if it said so.
    """

    flight: Flight
    store: bool = True
    fresh_s: float | None = None


CURRENT_FLIGHT: contextvars.ContextVar[FlightContext | None] = contextvars.ContextVar(
    "streaminfer_computation", default=None
)


def enter(flight: Flight) -> contextvars.Token[FlightContext | None]:
    """Begin an attempt of a flight in the present context."""
    return CURRENT_FLIGHT.set(FlightContext(flight))


def end_attempt(table: FlightTable, flight: Flight, error: BaseException, **options: bool) -> tuple[list[Any], Any]:
    """End the present attempt of a flight with an error, as `FlightTable.fail` does, and log what is news.

    Returns:
        The callers to tell, and the next leader, or ``None``.
    """
    with FLIGHTS_LOCK:
        told, leader, is_news = table.fail(flight, error, **options)
    if is_news:
        text = "a refresh behind a stale value failed; others are only counted until one succeeds: %s: %s"
        LOG.warning(text, type(error).__name__, error, exc_info=error)
    return told, leader


def no_store() -> None:
    """Say, from inside a computation, that its result is not to be stored; waiters get it all the same.

    Without a cache around it, nothing happens.
    """
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.store = False


def fresh_for(seconds: float) -> None:
    """Say, from inside a computation, how long its result is fresh: at most so long, and the cache's ``ttl_s``.

    Of several calls the shortest counts. Without a cache around it, nothing happens. A backend behind a batcher runs in
    the context of none of its callers: call this in a service around the batcher, from the response.

    Args:
        seconds: from when the result is stored, ≥ 0; 0: it is stale at once.

    Raises:
        TypeError, ValueError: no number of seconds.
    """
    checked = check_duration("seconds", seconds)
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.fresh_s = checked if inside.fresh_s is None else min(inside.fresh_s, checked)
