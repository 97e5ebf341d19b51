"""Single flight of one cache for tasks (``_loop_flights_cy``) and for threads, by the rules of ``_flight_cy``.

In threads, the leader computes in its own thread, and each waiter waits for an event. If the leader's computation
raises, even ``KeyboardInterrupt``, a waiter leads. A refresh has its own thread. A thread cannot be ended, so a late
refresh continues, but its key is free for others. Callers notice the delay when they join the flight, or when they have
waited until its limit. At most 64 such threads run. A forked process begins without flights, because the threads that
computed them exist only in its parent.
"""

import asyncio
import math
import threading
import time
import weakref
from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.forking import call_in_child
from streaminfer._internal.snapshot import Snapshot
from streaminfer.caching.single_flight._flight_cy import Flight, FlightCounts, FlightTable, Refreshes
from streaminfer.caching.single_flight._loop_flights_cy import LoopFlights, Work
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT, FLIGHTS_LOCK, end_attempt, enter
from streaminfer.errors import DeadlineExceeded, copy_error

__all__ = ["FlightStatistics", "SingleFlight"]

_MAX_REFRESH_THREADS = 64


@attrs.frozen(kw_only=True)
class FlightStatistics(Snapshot):
    """Counts of single flight since the cache was made.

    Attributes:
        computations: attempts: the first one of each flight, those after a failure, and refreshes.
        collapsed: callers that waited for another caller's computation.
        failures: attempts that ended with an error, refreshes included.
        leader_changes: attempts that a waiter began after the previous attempt failed.
        abandoned: computations that were cancelled because no caller waited for them.
        refreshes: background computations of keys with a stale value.
        refresh_failures: refreshes that failed or were late. The first after a success is logged as a warning of
            ``streaminfer.caching``.
        not_stored: results that callers got but the cache did not store: it rejected them, or during the computation
            their key was erased, a value was put under it, or the model was replaced.
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


_COUNTED = tuple(field.name for field in attrs.fields(FlightStatistics) if field.name != "in_flight")


class SingleFlight:
    """Flights of one cache, for threads and event loops; ``now`` reads the cache's clock."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.counts = FlightCounts()
        self.threads = ThreadFlights(self.counts, now)
        self._now = now
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlights] = weakref.WeakKeyDictionary()
        self._latest: LoopFlights | None = None
        self._failures = ErrorLog("streaminfer.caching")

    def here(self) -> LoopFlights:
        """Return the flights of the running event loop."""
        loop = get_running_loop()
        latest = self._latest  # fast path: a dictionary lookup costs as much as joining a flight
        if latest is not None and latest.loop() is loop:
            return latest
        flights = self._loops.get(loop)
        if flights is None:
            flights = LoopFlights(loop, self.counts, self._now)
            with FLIGHTS_LOCK:  # another thread may be iterating over the loops in `statistics`
                self._loops[loop] = flights
        self._latest = flights
        return flights

    def not_stored(self, error: Exception | None = None) -> None:
        """Count a result that was not stored; log the error of the cache, once for each class of errors."""
        with FLIGHTS_LOCK:
            self.counts.not_stored += 1
        if error is not None:
            self._failures.report("storing a result", error)

    def statistics(self) -> FlightStatistics:
        """Return a frozen snapshot."""
        with FLIGHTS_LOCK:
            running = len(self.threads.table) + sum(len(flights.table) for flights in self._loops.values())
            return FlightStatistics(in_flight=running, **{name: getattr(self.counts, name) for name in _COUNTED})


@attrs.define(eq=False)
class _Waiter:
    """Waiting caller in a thread."""

    event: threading.Event = attrs.Factory(threading.Event)
    value: Any = None
    error: BaseException | None = None


class ThreadFlights:
    """Flights of threads. Thread-safe.

    Args:
        counts: counts of the cache.
        now: reads the cache's clock.
    """

    def __init__(self, counts: FlightCounts, now: Callable[[], int]) -> None:
        self.table = FlightTable(counts, lambda _: True)
        self._now = now
        self._refreshing = 0
        call_in_child(self.forget)

    def forget(self) -> None:
        """Drop all flights, in a forked process."""
        self.table.forget()
        self._refreshing = 0

    def share(self, key: Any, work: Work) -> tuple[Any, bool]:
        """Return the value of a key, computed once for all concurrent callers; see ``LoopFlights.share``.

        Args:
            key: of the value.
            work: a function and its arguments, which computes the value if this caller leads.

        Returns:
            The value, and whether this caller computed it.

        Raises:
            RuntimeError: the caller is inside the computation of the same key.
            BaseException: the error of the computation.
        """
        waiter = _Waiter()
        context = CURRENT_FLIGHT.get()
        inside = None if context is None else context.flight
        with FLIGHTS_LOCK:
            flight = self.table.join(key, waiter, inside)
        error: BaseException = RuntimeError("the thread that computed this was interrupted")
        try:
            # this caller leads from the start, or after an earlier leader failed
            while flight.leader is not waiter and not waiter.event.wait(_left_s(flight)):
                self._end_late(flight)
            if waiter.error is not None:
                raise waiter.error  # noqa: TRY301 - it leaves the flight as who computed does
            if flight.leader is not waiter:
                return waiter.value, False
            value = _compute_in(flight, work)
            self._succeed(flight, value)
        except BaseException as raised:
            error = raised
            raise
        else:
            return value, True
        finally:
            with FLIGHTS_LOCK:
                leads = flight.leader is waiter  # if so, the waiters must be notified, whatever ended this call
                if not leads:
                    self.table.leave(flight, waiter, inside)
            if leads:
                self._fail(flight, error)
                with FLIGHTS_LOCK:
                    self.table.leave(flight, waiter, inside)
            waiter.error = None  # a traceback holds this frame
            del error

    def refresh(self, key: Any, work: Work, *, refreshes: Refreshes, limit_s: float) -> None:
        """Compute a key in a background thread while its stale value is used, unless it or too many keys are in flight.

        Args:
            key: of the value.
            work: a function and its arguments, which computes the value.
            refreshes: of the wrapped function.
            limit_s: seconds after which the key is free for others.
        """
        before = self.table.flight(key)
        if before is not None:
            self._end_late(before)
        with FLIGHTS_LOCK:
            may = self._refreshing < _MAX_REFRESH_THREADS
            flight = self.table.refresh(key, self._now(), refreshes) if may else None
            if flight is None:
                return
            flight.late_s = time.monotonic() + limit_s
            self._refreshing += 1
        run = partial(copy_context().run, self._refresh, flight, work)
        try:
            threading.Thread(target=run, name="streaminfer-cache-refresh", daemon=True).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            with FLIGHTS_LOCK:
                self._refreshing -= 1
            self._fail(flight, error)

    def _refresh(self, flight: Flight, work: Work) -> None:
        try:
            self._succeed(flight, _compute_in(flight, work))
        except BaseException as error:  # noqa: BLE001 - logged; no caller waits for a refresh
            self._fail(flight, error, as_refresh=True)
        finally:
            with FLIGHTS_LOCK:
                self._refreshing -= 1

    def _end_late(self, flight: Flight) -> None:
        """End the flight of a refresh if it is late."""
        if _left_s(flight) == 0.0:
            flight.late_s = math.inf
            self._fail(flight, DeadlineExceeded("a refresh in a thread is late; it continues"), as_refresh=True)

    def _succeed(self, flight: Flight, value: Any) -> None:
        with FLIGHTS_LOCK:
            waiters = self.table.succeed(flight)
        for waiter in waiters:
            waiter.value = value
            waiter.event.set()

    def _fail(self, flight: Flight, error: BaseException, *, as_refresh: bool = False) -> None:
        original = flight.leader
        waiters, leader = end_attempt(self.table, flight, error, as_refresh=as_refresh)
        for waiter in waiters:
            if waiter is not original:
                waiter.error = copy_error(error)
                waiter.event.set()
        if leader is not None:
            leader.event.set()


def _left_s(flight: Flight) -> float | None:
    """Return the seconds that a refresh may still take; ``None``: no limit."""
    return None if flight.late_s == math.inf else max(flight.late_s - time.monotonic(), 0.0)


def _compute_in(flight: Flight, work: Work) -> Any:
    token = enter(flight)
    try:
        value = work[0](*work[1:])
        context: Any = CURRENT_FLIGHT.get()
        flight.discards = not context.store
        return value
    finally:
        CURRENT_FLIGHT.reset(token)
