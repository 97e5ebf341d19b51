"""Single flight for threads: the leader computes in its own thread, the others wait for an event each.

A leader whose computation raises, even ``KeyboardInterrupt``, hands over before it lets go. A refresh has a thread of
its own. A thread cannot be ended, so a refresh that is late goes on; its key is free for others, who find out when they
come or have waited for so long. There are at most 64 such threads: where all hang, none begins. In a forked process
there are no flights: the threads that computed are in the other one.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from streaminfer._internal.forking import at_fork
from streaminfer.caching.single_flight._flight_cy import Flight, FlightCounts, FlightTable, Refreshes
from streaminfer.caching.single_flight.flight_context import (
    BOARDS,
    CURRENT_FLIGHT,
    FlightContext,
    is_shared_error,
    report,
)
from streaminfer.caching.wrapping.defensive_copy import copy_error
from streaminfer.errors import DeadlineExceeded, InvalidInput

__all__ = ["ThreadFlights"]

_MOST_REFRESH_THREADS = 64


class _Waiter:
    """One that waits in a thread."""

    __slots__ = ("error", "event", "leads", "value")

    leads: bool  # said when it joins, and again when it is to compute after all

    def __init__(self) -> None:
        self.event = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class ThreadFlights:
    """The flights of threads; any number may use it at once.

    Args:
        counts: where to count.
        max_attempts: failures of one flight after which all that wait get the error, ≥ 1.
        pause_ns: as of `FlightTable`.
    """

    def __init__(self, counts: FlightCounts, max_attempts: int, pause_ns: int) -> None:
        self.board = FlightTable(max_attempts, pause_ns, lambda _: True)
        self._counts = counts
        self._refreshing = 0
        _THREAD_FLIGHTS.add(self)

    def forget(self) -> None:
        """In a forked process: the threads that computed are in the other one."""
        self.board.forget()
        self._refreshing = 0

    def share(
        self, key: Any, compute: Callable[..., Any], arguments: tuple[Any, ...], now: Callable[[], int]
    ) -> tuple[Any, bool]:
        """The value of a key, computed once for all who ask for it meanwhile; see ``LoopFlights.share``.

        Args:
            key: what for.
            compute: computes it, if this caller has to lead.
            arguments: what it is called with.
            now: reads the cache's clock.

        Returns:
            The value, and whether this caller computed it.

        Raises:
            RuntimeError: the caller is inside the computation of the same key.
            BaseException: what the computation raised.
        """
        waiter = _Waiter()
        inside = _present()
        with BOARDS:
            flight = self.board.join(key, waiter, inside)
            waiter.leads = flight.leader is waiter
            if waiter.leads:
                self._counts.computations += 1
            else:
                self._counts.joined += 1
        error: BaseException = RuntimeError("the thread that computed this was interrupted")
        try:
            while not waiter.leads and not waiter.event.wait(_left_s(flight)):
                self._end_late(flight, now())
            if not waiter.leads:
                return waiter.result(), False
            value = _compute_in(flight, compute, arguments)
            self._succeed(flight, value)
        except BaseException as raised:
            error = raised
            raise
        else:
            return value, True
        finally:
            with BOARDS:
                owes = flight.leader is waiter  # the others are owed an end, however this one ended itself
                if not owes:
                    self.board.leave(flight, waiter, inside)
            if owes:
                self._fail(flight, error, now())
                with BOARDS:
                    self.board.leave(flight, waiter, inside)
            del error  # its traceback holds this frame

    def refresh(
        self,
        key: Any,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        now: Callable[[], int],
        *,
        refreshes: Refreshes,
        limit_s: float,
    ) -> None:
        """Computes a key behind its stale value in a thread, unless it is being computed, or too many keys are.

        Args:
            key: what for.
            compute: computes it.
            arguments: what it is called with.
            now: reads the cache's clock.
            refreshes: of the wrapped function.
            limit_s: how long it may take; after that the key is free for others.
        """
        before = self.board.flight(key)
        if before is not None:
            self._end_late(before, now())
        with BOARDS:
            may = self._refreshing < _MOST_REFRESH_THREADS
            flight = self.board.refresh(key, now(), refreshes) if may else None
            if flight is None:
                return
            flight.late_s = time.monotonic() + limit_s
            self._refreshing += 1
            self._counts.computations += 1
            self._counts.refreshes += 1
        work = partial(copy_context().run, self._refresh, flight, compute, arguments, now)
        try:
            threading.Thread(target=work, name="streaminfer-cache-refresh", daemon=True).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            with BOARDS:
                self._refreshing -= 1
            self._fail(flight, error, now())

    def _refresh(
        self, flight: Flight, compute: Callable[..., Any], arguments: tuple[Any, ...], now: Callable[[], int]
    ) -> None:
        try:
            self._succeed(flight, _compute_in(flight, compute, arguments))
        except BaseException as error:  # noqa: BLE001 - reported; there is nobody to raise it to
            self._fail(flight, error, now(), as_refresh=True)
        finally:
            with BOARDS:
                self._refreshing -= 1

    def _end_late(self, flight: Flight, now_ns: int) -> None:
        """Ends the refresh of a flight if it is late."""
        if _left_s(flight) == 0.0:
            flight.late_s = math.inf
            self._fail(flight, DeadlineExceeded("a refresh in a thread is late; it goes on"), now_ns, as_refresh=True)

    def _succeed(self, flight: Flight, value: Any) -> None:
        with BOARDS:
            told = self.board.succeed(flight)
        for waiter in told:
            waiter.value = value
            waiter.event.set()

    def _fail(self, flight: Flight, error: BaseException, now_ns: int, *, as_refresh: bool = False) -> None:
        with BOARDS:
            if as_refresh and (flight.over or flight.leader is not None):
                return  # it was late, and a caller that waited computes
            refreshed = flight.is_refresh and flight.leader is None
            known = flight.refreshes is not None and flight.refreshes.failing
            original = flight.leader
            self._counts.failures += 1
            self._counts.refresh_failures += refreshed
            counts = isinstance(error, Exception) and is_shared_error(error)
            told, leader = self.board.fail(flight, now_ns, counts=counts, final=isinstance(error, InvalidInput))
            if leader is not None:
                self._counts.handed_over += 1
                self._counts.computations += 1
                leader.leads = True
        if refreshed and not known:
            report(error)
        for waiter in told:
            if waiter is not original:
                waiter.error = copy_error(error)
                waiter.event.set()
        if leader is not None:
            leader.event.set()


_THREAD_FLIGHTS: weakref.WeakSet[ThreadFlights] = weakref.WeakSet()


def _after_fork() -> None:
    for flights in list(_THREAD_FLIGHTS):
        flights.forget()


at_fork(in_child=_after_fork)


def _left_s(flight: Flight) -> float | None:
    """How long a refresh may take yet; ``None``: as long as it takes."""
    return None if flight.late_s == math.inf else max(flight.late_s - time.monotonic(), 0.0)


def _compute_in(flight: Flight, compute: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    token = CURRENT_FLIGHT.set(FlightContext(flight))
    try:
        return compute(*arguments)
    finally:
        CURRENT_FLIGHT.reset(token)


def _present() -> Flight | None:
    inside = CURRENT_FLIGHT.get()
    return None if inside is None else inside.flight
