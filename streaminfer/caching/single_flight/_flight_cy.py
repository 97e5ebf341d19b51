"""Single flight: of many callers of one key, one computes the value and all get it.

*Design.* A flight is one computation, under its key. The first caller of a key starts the flight and leads it; later
callers join it and wait.

* A leader that fails gets its error, and another waiter leads: its own attempt may succeed (another deadline, another
  connection). Up to three waiters lead in order of arrival. Of more, as in a stampede, the latest leads, which has most
  time left: in order of arrival each would lead when its time was nearly over, and after one slow computation none
  would ever be in time. After three failures of one flight all waiters get the last error, so a broken backend is not
  called once per waiter. An error of the leader alone (its deadline) does not count, but each takes a leader away. An
  error of the input is final at once, because all waiters have the same input.
* A caller that leaves (cancelled, or at its deadline) takes nothing with it. The computation continues while at least
  one caller waits. Otherwise the flight is abandoned: it leaves the table, so that the next caller starts another, and
  its computation is cancelled.
* A refresh is a flight without callers and is never abandoned. Where it fails and a waiter leads, the flight is as any
  other. After a failure, or a value that may not be stored, its key pauses until a second after the refresh began, so
  that a backend that is down, or degraded, is not called at every stale hit, and one that hung is called again at once.
  One flight refreshes an entry for callers of all priorities. Of one wrapped service at most 256 keys are refreshed or
  paused; other stale keys wait for these.
* A computation that waits for its own flight would wait for ever; so would two that wait for each other. The waits of
  computations are edges of a graph between flights, and a join that would close a cycle raises.

It has no event loop, lock, thread or clock: ``_loop_flights_cy`` and ``flights`` have, and take a lock.

*Complexity.* All operations are O(1), except telling all waiters and the check for cycles. That walks the flights that
the joined one waits for: none, unless computations call for other keys.

*Invariants.* A flight in the table has at most one computation. Its waiters are in order of arrival. A caller is told
once. A flight that is over is not in the table.

*References.* Go's ``singleflight``; RFC 5861 for refreshes; deadlock detection in databases for the graph.

One source, compiled with the C types of ``_flight_cy.pxd`` or run as plain Python: of a thousand concurrent callers
each waits until all have joined.
"""

import math
from collections.abc import Callable
from typing import Any

from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput

__all__ = ["MAX_ATTEMPTS", "PAUSE_NS", "Flight", "FlightCounts", "FlightTable", "Refreshes"]

MAX_ATTEMPTS = 3  # failures of one flight, after which all waiters get the error
PAUSE_NS = 1_000_000_000  # from the beginning of a refresh that stored nothing: until then its key is not refreshed
_MAX_REFRESHES = 256


class FlightCounts:
    """Counts of one cache's single flight; `FlightStatistics` has the same names and says what they mean."""

    def __init__(self) -> None:
        self.computations = 0
        self.collapsed = 0
        self.failures = 0
        self.leader_changes = 0
        self.abandoned = 0
        self.refreshes = 0
        self.refresh_failures = 0
        self.not_stored = 0


class Refreshes:
    """Refreshes of one wrapped service or function; used under the flight tables' lock.

    Args:
        max_running: how many may run at once.

    Attributes:
        running: how many run.
        failing: the latest that ended has failed.
    """

    def __init__(self, max_running: int = _MAX_REFRESHES) -> None:
        self._max_running = max_running
        self._pauses: dict[Any, int] = {}  # by entry, until when
        self.running = 0
        self.failing = False

    def may_begin(self, entry: Any, now_ns: int) -> bool:
        """Return whether an entry may be refreshed at an instant."""
        while self._pauses:
            oldest = next(iter(self._pauses))
            if self._pauses[oldest] > now_ns:
                break
            del self._pauses[oldest]
        if self._pauses.get(entry, now_ns) > now_ns or self.running >= self._max_running:
            return False
        return self.running + len(self._pauses) < _MAX_REFRESHES

    def ended(self, flight: "Flight", error: BaseException | None) -> None:
        """Note that a refresh ended; unless its value may be stored, its key pauses."""
        self.failing = error is not None
        if self.failing or flight.discards:
            self._pauses.pop(flight.entry, None)
            self._pauses[flight.entry] = flight.begun_ns + PAUSE_NS


class Flight:
    """Computation of one key, and its waiters.

    Attributes:
        key: what it computes, and for callers of which priority.
        entry: what a refresh renews; flights of several priorities can have one.
        waiting: the waiters in order of arrival: keys of a dict whose values mean nothing.
        leader: whose attempt it is; ``None``: the caller left, or it is a refresh.
        failures: attempts that failed and counted.
        refreshes: of the wrapped service that it refreshes, which continues without waiters; ``None``: it is none, or
            the refresh failed and a waiter leads.
        begun_ns: when a refresh began.
        over: it has left the table.
        computing: what runs it, set by the user of the table; ``None``: nothing does.
        discards: the value of its latest attempt may not be stored, set by the user of the table.
        late_s: when a refresh is late, set by the user of the table.
    """

    def __init__(self, key: Any, entry: Any = None, refreshes: Refreshes | None = None, begun_ns: int = 0) -> None:
        self.key = key
        self.entry = entry
        self.waiting: dict[Any, Any] = {}
        self.leader: Any = None
        self.failures = 0
        self.refreshes = refreshes
        self.begun_ns = begun_ns
        self.over = False
        self.computing: Any = None
        self.discards = False
        self.late_s = math.inf
        self.waits_for: dict[Flight, int] = {}


class FlightTable:
    """Flights of one cache, on one event loop or of threads; it counts what they do.

    Args:
        counts: of the cache.
        is_waiting: says of a caller whether it can still be told, and so may lead.
    """

    def __init__(self, counts: FlightCounts, is_waiting: Callable[[Any], bool]) -> None:
        self._counts = counts
        self._flights: dict[Any, Flight] = {}
        self._refreshed: set[Any] = set()  # entries; of this loop, because one that stands still ends none
        self._is_waiting = is_waiting

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: Any, caller: Any, inside: Flight | None) -> Flight:
        """Add a caller to the flight of a key, which it starts if there is none.

        Args:
            key: of the value.
            caller: hashable by identity; another one for each call.
            inside: the flight whose computation calls, if any.

        Returns:
            The flight. If the caller is its ``leader``, it must compute.

        Raises:
            RuntimeError: it would wait for itself.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(key)
            flight.leader = caller
            self._counts.computations += 1
        elif inside is not None and _reaches(flight, inside):
            raise RuntimeError(
                "re-entrant: the computation of this key calls for the key itself, directly or through another one "
                "that waits for it, and would wait for ever"
            )
        else:
            self._counts.collapsed += 1
        flight.waiting[caller] = None
        if inside is not None:
            inside.waits_for[flight] = inside.waits_for.get(flight, 0) + 1
        return flight

    def leave(self, flight: Flight, caller: Any, inside: Flight | None) -> bool:
        """Remove a caller, told or not; called once for each :meth:`join` that returned.

        Returns:
            Whether this abandons the flight: its computation is to be cancelled.
        """
        if inside is not None:
            left = inside.waits_for[flight] - 1
            if left:
                inside.waits_for[flight] = left
            else:
                del inside.waits_for[flight]
        if flight.over:
            return False
        flight.waiting.pop(caller, None)
        if flight.leader is caller:
            flight.leader = None
        if flight.waiting or flight.refreshes is not None:
            return False
        self._end(flight)
        self._counts.abandoned += 1
        return True

    def refresh(self, key: Any, now_ns: int, refreshes: Refreshes, entry: Any = None) -> Flight | None:
        """Start a flight without callers.

        Args:
            key: of the flight, which callers can join.
            now_ns: the present instant.
            refreshes: of the wrapped service.
            entry: what it renews, for the bounds of ``refreshes``; ``None``: the key.

        Returns:
            The flight; ``None``: the key has one, or the entry is being refreshed, or may not be yet.
        """
        entry = key if entry is None else entry
        if key in self._flights or entry in self._refreshed or not refreshes.may_begin(entry, now_ns):
            return None
        self._refreshed.add(entry)
        refreshes.running += 1
        self._counts.computations += 1
        self._counts.refreshes += 1
        flight = self._flights[key] = Flight(key, entry, refreshes, now_ns)
        return flight

    def flight(self, key: Any) -> Flight | None:
        """Return the flight of a key."""
        return self._flights.get(key)

    def succeed(self, flight: Flight) -> list[Any]:
        """End a flight with a value.

        Returns:
            The callers to tell; none if the flight was abandoned.
        """
        if flight.over:
            return []
        if flight.refreshes is not None:
            flight.refreshes.ended(flight, None)
        self._end(flight)
        told = list(flight.waiting)
        flight.waiting.clear()
        return told

    def fail(
        self, flight: Flight, error: BaseException, *, final: bool = False, as_refresh: bool = False
    ) -> tuple[list[Any], Any, bool]:
        """End the present attempt of a flight with an error.

        Args:
            flight: of the attempt.
            error: which counts if it says something about the key, and not about its leader alone.
            final: whether another attempt cannot succeed, whatever the error.
            as_refresh: only if the present attempt is the refresh, and none of a waiter.

        Returns:
            The callers to tell, the next leader (it must compute), or ``None``, and whether to log the error: it is the
            first of a refresh since one succeeded.
        """
        if flight.over or (as_refresh and flight.leader is not None):
            return [], None, False
        self._counts.failures += 1
        is_news = False
        if flight.refreshes is not None and flight.leader is None:
            self._counts.refresh_failures += 1
            is_news = not flight.refreshes.failing
            flight.refreshes.ended(flight, error)
            self._end_refresh(flight)
        told = []
        if flight.leader is not None:
            told.append(flight.leader)
            del flight.waiting[flight.leader]
            flight.leader = None
        flight.failures += isinstance(error, Exception) and not isinstance(error, (DeadlineExceeded, Closed))
        if not final and not isinstance(error, InvalidInput) and flight.failures < MAX_ATTEMPTS:
            are_many = len(flight.waiting) > MAX_ATTEMPTS
            for caller in reversed(flight.waiting) if are_many else flight.waiting:
                if self._is_waiting(caller):
                    flight.leader = caller
                    self._counts.leader_changes += 1
                    self._counts.computations += 1
                    return told, caller, is_news
        self._end(flight)
        told += flight.waiting
        flight.waiting.clear()
        return told, None, is_news

    def forget(self) -> None:
        """End all flights and tell no caller, because the threads that computed them are gone."""
        for flight in list(self._flights.values()):
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        flight.over = True
        flight.leader = None
        self._end_refresh(flight)
        del self._flights[flight.key]

    def _end_refresh(self, flight: Flight) -> None:
        """Let a flight be one of its waiters alone, if it was a refresh."""
        if flight.refreshes is not None:
            flight.refreshes.running -= 1
            flight.refreshes = None
            self._refreshed.discard(flight.entry)


def _reaches(start: Flight, goal: Flight) -> bool:
    """Return whether ``start`` is ``goal``, or waits for it through others."""
    seen = {start}
    ahead = [start]
    while ahead:
        flight = ahead.pop()
        if flight is goal:
            return True
        fresh = flight.waits_for.keys() - seen
        seen |= fresh
        ahead += fresh
    return False
