"""Single flight: of many concurrent callers of one key, one computes the value and all get it.

*Design.* A flight is one computation of one key. The first caller of a key starts the flight and leads it; later
callers join it and wait.

* If a leader fails, it gets its error and another waiter leads, because that waiter's own attempt may succeed (another
  deadline, another connection). Up to three waiters lead in order of arrival. If there are more, as in a stampede, the
  latest leads, because it has the most time left. In order of arrival each would lead when its time was nearly over;
  after one slow computation, no waiter would ever be in time.
* After three failures of one flight all waiters get the last error, so that a broken backend is not called once per
  waiter. An error that concerns only the leader (its deadline) does not count as a failure of the flight, but the
  leader leaves. An error of the input ends the flight at once, because all waiters have the same input.
* A caller that leaves (cancelled, or at its deadline) does not affect the others. The computation continues while at
  least one caller waits. Otherwise the flight is abandoned: it leaves the table, so that the next caller starts a new
  one, and its computation is cancelled.
* A refresh is a flight without callers and is never abandoned. If it fails and a waiter leads, it becomes an ordinary
  flight. After a failure, or a value that may not be stored, its key pauses until one second after the refresh began. A
  backend that is down or degraded is thus not called at every stale hit, and one that hung is called again at once. One
  flight refreshes an entry for callers of all priorities. Per wrapped service, at most 256 keys are being refreshed or
  paused; other stale keys wait for these.
* A computation that waits for its own flight would wait for ever, and so would two that wait for each other. The waits
  of computations are therefore edges of a graph between flights, and a join that would close a cycle raises an error.

The table has no event loop, lock, thread or clock; ``_loop_flights_cy`` and ``flights`` have them and take the lock.

*Complexity.* All operations are O(1), except notifying all waiters and the check for cycles. The check walks the
flights that the joined flight waits for: none, unless computations request other keys.

*Invariants.* A flight in the table has at most one computation. Its waiters are in order of arrival. A caller is
notified once. A flight that is over is not in the table.

*References.* Go's ``singleflight``; RFC 5861 (refreshes); deadlock detection in databases (the graph).

One source, compiled with the C types of ``_flight_cy.pxd`` or run as plain Python. It is compiled because each of a
thousand concurrent callers waits until all have joined.
"""

import math
from collections.abc import Callable
from typing import Any

from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput

__all__ = ["MAX_ATTEMPTS", "PAUSE_NS", "Flight", "FlightCounts", "FlightTable", "Refreshes"]

MAX_ATTEMPTS = 3  # failures of one flight, after which all waiters get the error
PAUSE_NS = 1_000_000_000  # from the start of a refresh that stored nothing to the next refresh of its key
_MAX_REFRESHES = 256


class FlightCounts:
    """Counts of one cache's single flight; `FlightStatistics` describes them."""

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
    """Refreshes of one wrapped service or function; used under the lock of the flight tables.

    Args:
        max_running: most refreshes at once.

    Attributes:
        running: refreshes that run now.
        failing: whether the latest finished refresh failed.
    """

    def __init__(self, max_running: int = _MAX_REFRESHES) -> None:
        self._max_running = max_running
        self._pauses: dict[Any, int] = {}  # by entry, when its pause ends
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
        """Note that a refresh ended; pause its key if it failed or its value may not be stored."""
        self.failing = error is not None
        if self.failing or flight.discards:
            self._pauses.pop(flight.entry, None)
            self._pauses[flight.entry] = flight.begun_ns + PAUSE_NS


class Flight:
    """Computation of one key, and its waiters.

    Attributes:
        key: the key of the value, and the priority of the callers.
        entry: the entry that a refresh renews; flights of several priorities can renew the same one.
        waiting: the waiters in order of arrival: keys of a dict with unused values.
        leader: the caller whose attempt runs; ``None``: that caller left, or the flight is a refresh.
        failures: failed attempts that counted.
        refreshes: the `Refreshes` to which a refresh belongs, so that it continues without waiters; ``None``: this is
            no refresh, or it failed and a waiter leads.
        begun_ns: when a refresh began.
        over: whether it has left the table.
        computing: the running computation, set by the user of the table; ``None``: none runs.
        tier_wait: limits the time that the latest attempt waits for tiers, set by a `Layer`; ``None``: it has no tiers.
        discards: whether the value of the latest attempt may not be stored, set by the user of the table.
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
        self.tier_wait: Any = None
        self.discards = False
        self.late_s = math.inf
        self.waits_for: dict[Flight, int] = {}


class FlightTable:
    """Flights of one cache, for one event loop or for threads, with counts.

    Args:
        counts: of the cache.
        is_waiting: returns whether a caller can still be notified and may therefore lead.
    """

    def __init__(self, counts: FlightCounts, is_waiting: Callable[[Any], bool]) -> None:
        self._counts = counts
        self._flights: dict[Any, Flight] = {}
        self._refreshed: set[Any] = set()  # entries of this loop only: a loop that stands still removes none
        self._is_waiting = is_waiting

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: Any, caller: Any, inside: Flight | None) -> Flight:
        """Add a caller to the flight of a key; start the flight if there is none.

        Args:
            key: of the value.
            caller: hashable by identity; a new object for each call.
            inside: the flight whose computation makes this call, if any.

        Returns:
            The flight. If the caller is its ``leader``, the caller must compute.

        Raises:
            RuntimeError: the flight would wait for itself.
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
        """Remove a caller, notified or not; call it once for each :meth:`join` that returned.

        Returns:
            Whether this abandons the flight, so that its computation must be cancelled.
        """
        if inside is not None:
            remaining = inside.waits_for[flight] - 1
            if remaining:
                inside.waits_for[flight] = remaining
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
            now_ns: the current instant.
            refreshes: of the wrapped service.
            entry: the entry that the flight renews, which ``refreshes`` counts; ``None``: the key.

        Returns:
            The flight; ``None`` if the key has a flight, or if the entry is being refreshed or paused.
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
            The callers to notify; none if the flight was abandoned.
        """
        if flight.over:
            return []
        if flight.refreshes is not None:
            flight.refreshes.ended(flight, None)
        self._end(flight)
        callers = list(flight.waiting)
        flight.waiting.clear()
        return callers

    def fail(
        self, flight: Flight, error: BaseException, *, final: bool = False, as_refresh: bool = False
    ) -> tuple[list[Any], Any, bool]:
        """End the current attempt of a flight with an error.

        Args:
            flight: of the attempt.
            error: counts as a failure of the flight, unless it concerns only the leader.
            final: whether another attempt cannot succeed, whatever the error.
            as_refresh: do so only if the current attempt is the refresh, not the attempt of a waiter.

        Returns:
            The callers to notify; the next leader, which must compute, or ``None``; and whether to log the error: it is
            the first of a refresh since one succeeded.
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
        callers = []
        if flight.leader is not None:
            callers.append(flight.leader)
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
                    return callers, caller, is_news
        self._end(flight)
        callers += flight.waiting
        flight.waiting.clear()
        return callers, None, is_news

    def forget(self) -> None:
        """End all flights without notifying callers, because the threads that computed them are gone."""
        for flight in list(self._flights.values()):
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        flight.over = True
        flight.leader = None
        self._end_refresh(flight)
        del self._flights[flight.key]

    def _end_refresh(self, flight: Flight) -> None:
        """Make a refresh an ordinary flight, which only its waiters keep alive."""
        if flight.refreshes is not None:
            flight.refreshes.running -= 1
            flight.refreshes = None
            self._refreshed.discard(flight.entry)


def _reaches(start: Flight, target: Flight) -> bool:
    """Return whether ``start`` is ``target``, or waits for it through others."""
    seen = {start}
    ahead = [start]
    while ahead:
        flight = ahead.pop()
        if flight is target:
            return True
        unseen = flight.waits_for.keys() - seen
        seen |= unseen
        ahead += unseen
    return False
