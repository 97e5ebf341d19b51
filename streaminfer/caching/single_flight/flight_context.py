"""Which computation this is: what single flight knows of it from inside, and the lock that its bookkeeping takes.

Which flight a computation belongs to is a context variable, so it is known in whatever tasks, and threads started by
``asyncio.to_thread``, the computation uses. A thread that does not inherit the context is not seen: if it asks for the
key that it is computing it waits for ever, as with any lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

from streaminfer._internal.forking import at_fork
from streaminfer._internal.validation import check_duration
from streaminfer.caching.single_flight._flight_cy import Flight
from streaminfer.errors import Closed, DeadlineExceeded

__all__ = [
    "BOARDS",
    "CURRENT_FLIGHT",
    "FlightContext",
    "fresh_for",
    "is_shared_error",
    "no_store",
    "report",
    "said_fresh_s",
    "storable",
]

LOG = logging.getLogger("streaminfer.caching")

BOARDS = threading.Lock()
"""One for all boards: the graph of who waits for whom goes from cache to cache."""

# so that no board is in the middle of something in the child
at_fork(before=BOARDS.acquire, in_parent=BOARDS.release, in_child=BOARDS.release)


class FlightContext:
    """The computation that runs in this context.

    Attributes:
        flight: what it computes.
        store: whether its answer may be kept.
        fresh_s: for how long its answer is fresh, as far as it said so.
    """

    __slots__ = ("flight", "fresh_s", "store")

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.store = True
        self.fresh_s: float | None = None


CURRENT_FLIGHT: contextvars.ContextVar[FlightContext | None] = contextvars.ContextVar(
    "streaminfer_computation", default=None
)


def no_store() -> None:
    """Says, from inside a computation, that its answer is not to be kept; those who wait for it get it all the same.

    Without a cache around it, nothing happens.
    """
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.store = False


def fresh_for(seconds: float) -> None:
    """Says, from inside a computation, how long its answer is fresh: at most so long, and the cache's ``ttl_s``.

    Of several calls the shortest counts. Without a cache around it, nothing happens. A model behind a batcher computes
    for many callers at once and in none of their contexts: a service around the batcher says it, from the response.

    Args:
        seconds: from when the answer is stored, ≥ 0; 0: it is stale at once.

    Raises:
        TypeError, ValueError: no number of seconds.
    """
    checked = check_duration("seconds", seconds)
    inside = CURRENT_FLIGHT.get()
    if inside is not None:
        inside.fresh_s = checked if inside.fresh_s is None else min(inside.fresh_s, checked)


def said_fresh_s() -> float | None:
    """What the computation that runs in this context said with :func:`fresh_for`; ``None``: nothing."""
    inside = CURRENT_FLIGHT.get()
    return None if inside is None else inside.fresh_s


def storable() -> bool:
    """Whether the computation that runs in this context has not said :func:`no_store`."""
    inside = CURRENT_FLIGHT.get()
    return inside is None or inside.store


def is_shared_error(error: BaseException) -> bool:
    """Whether an error says something about the key, and not about its leader alone."""
    return not isinstance(error, (DeadlineExceeded, Closed, asyncio.CancelledError))


def report(error: BaseException) -> None:
    """Logs that a refresh failed: there is nobody to raise it to."""
    text = "a refresh behind a stale answer failed; others are only counted until one succeeds: %s: %s"
    LOG.warning(text, type(error).__name__, error, exc_info=error)
