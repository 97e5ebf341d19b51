"""Single flight: many ask for what is not there yet, one computes it, all get it.

A *flight* is one computation that somebody waits for, under its key. Who asks for a key without a flight starts one and
leads it; who asks later joins it and waits. The rules for what may go wrong:

* **A leader that fails** gets its error, and the next in line that still waits leads: its own attempt may well
  succeed (another deadline, another connection). After ``max_attempts`` failures of one flight all that wait get the
  last error, so a broken model is not asked once for each of a thousand callers. An error that speaks for the leader
  alone (its deadline) is not counted; each such failure takes a leader away, so it ends all the same. One that is
  the input's fault is final at once: whoever waits asked the same.
* **A caller that leaves** (cancelled, or at its deadline) takes nothing with it. The computation goes on as long as
  somebody waits, whoever began it; when nobody does, it is *abandoned*: taken off the board, so that the next caller
  starts afresh, and cancelled by the shell.
* **A refresh** is a flight without callers: it is never abandoned. After a failure its key is left alone until
  ``pause_ns`` after it began, so that a model that is down is not asked at every stale hit, and one that hung is asked
  again at once. Of one wrapped thing at most 256 keys are refreshed or left alone; other stale keys wait for these.
* **Re-entrancy.** A computation that waits for its own flight would wait for ever; so would two that wait for each
  other. Each computation's waits are edges of a graph between flights, and a join that would close a cycle raises
  instead.

Invariants: a flight on the board has at most one computation; its waiting callers are in order of arrival; a caller is
told once; a flight that is over is not on the board. All operations are O(1), but for the check for cycles, which walks
the flights that the joined one waits for (none, unless computations ask for other keys), and for telling all.

No event loop, lock, thread or clock: shells are ``_loop_flights_cy`` and ``thread_flights``, and take a lock.
Sources: Go's ``singleflight``; RFC 5861 for refreshes; the graph is that of deadlock detection in databases.

One source, compiled with the C types of ``_flight_cy.pxd`` or run as it is: a thousand callers may ask at once, and
each waits until all have joined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["Flight", "FlightCounts", "FlightTable", "Refreshes"]

_MOST_REFRESHES = 256


class FlightCounts:
    """What single flight of one cache did; see ``FlightStatistics``, which has the same names."""

    __slots__ = (
        "abandoned",
        "computations",
        "failures",
        "handed_over",
        "joined",
        "not_stored",
        "refresh_failures",
        "refreshes",
    )

    def __init__(self) -> None:
        self.computations = 0
        self.joined = 0
        self.failures = 0
        self.handed_over = 0
        self.abandoned = 0
        self.refreshes = 0
        self.refresh_failures = 0
        self.not_stored = 0


class Refreshes:
    """The refreshes of one wrapped thing; used under the boards' lock.

    Args:
        most_running: how many may run at once.

    Attributes:
        running: how many do.
        failing: the latest that ended has failed.
    """

    __slots__ = ("_most_running", "_pauses", "failing", "running")

    def __init__(self, most_running: int = _MOST_REFRESHES) -> None:
        self._most_running = most_running
        self._pauses: dict[bytes, int] = {}  # until when
        self.running = 0
        self.failing = False

    def may_begin(self, key: bytes, now_ns: int) -> bool:
        """Whether a key may be refreshed at an instant."""
        while self._pauses:
            oldest = next(iter(self._pauses))
            if self._pauses[oldest] > now_ns:
                break
            del self._pauses[oldest]
        if self._pauses.get(key, now_ns) > now_ns or self.running >= self._most_running:
            return False
        return self.running + len(self._pauses) < _MOST_REFRESHES

    def failed(self, key: bytes, until_ns: int, now_ns: int) -> None:
        """A refresh failed; its key is left alone until an instant."""
        self.failing = True
        self._pauses.pop(key, None)
        if until_ns > now_ns:
            self._pauses[key] = until_ns


class Flight:
    """One key's computation and those who wait for it.

    Attributes:
        key: what it computes.
        waiting: the callers that wait, in order of arrival: keys of a dict whose values mean nothing.
        leader: whose attempt it is; ``None``: the caller left, or it is a refresh.
        failures: attempts that failed and counted.
        is_refresh: it goes on without anybody waiting.
        refreshes: of what it is a refresh; ``None``: it is none.
        begun_ns: when a refresh began.
        over: it is off the board.
        computing: the shell's own: what runs it; ``None``: nothing does.
        late_s: the shell's own: when a refresh is late.
    """

    __slots__ = (
        "begun_ns",
        "computing",
        "failures",
        "is_refresh",
        "key",
        "late_s",
        "leader",
        "over",
        "refreshes",
        "waiting",
        "waits_for",
    )

    def __init__(self, key: bytes, refreshes: Refreshes | None = None, begun_ns: int = 0) -> None:
        self.key = key
        self.waiting: dict[Any, Any] = {}
        self.leader: Any = None
        self.failures = 0
        self.is_refresh = refreshes is not None
        self.refreshes = refreshes
        self.begun_ns = begun_ns
        self.over = False
        self.computing: Any = None
        self.late_s = math.inf
        self.waits_for: dict[Flight, int] = {}

    def __repr__(self) -> str:
        state = "over" if self.over else "refresh" if self.is_refresh else "in the air"
        return f"<Flight {self.key!r}, {state}, {len(self.waiting)} wait>"


class FlightTable:
    """The flights of one cache.

    Args:
        max_attempts: failures of one flight after which all that wait get the error, ≥ 1.
        pause_ns: nanoseconds from the beginning of a refresh that failed, for which its key is not refreshed.
        is_waiting: says of a caller whether it can still be told, and so may lead.
    """

    __slots__ = ("_flights", "_is_waiting", "_max_attempts", "_pause_ns")

    def __init__(self, max_attempts: int, pause_ns: int, is_waiting: Callable[[Any], bool]) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._max_attempts = max_attempts
        self._pause_ns = pause_ns
        self._is_waiting = is_waiting

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: bytes, caller: Any, inside: Flight | None) -> Flight:
        """A caller waits for a key.

        Args:
            key: what it wants.
            caller: hashable by identity; each call of :meth:`join` a fresh one.
            inside: the flight whose computation asks, if any.

        Returns:
            The flight. If the caller is its ``leader``, it has to compute.

        Raises:
            RuntimeError: it would wait for itself.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(key)
            flight.leader = caller
        elif inside is not None and _reaches(flight, inside):
            raise RuntimeError(
                "re-entrant: the computation of this key asks for the key itself, directly or through another key that "
                "waits for it, and would wait for ever"
            )
        flight.waiting[caller] = None
        if inside is not None:
            inside.waits_for[flight] = inside.waits_for.get(flight, 0) + 1
        return flight

    def leave(self, flight: Flight, caller: Any, inside: Flight | None) -> bool:
        """A caller waits no longer, told or not; called once for each :meth:`join` that returned.

        Returns:
            Whether this abandons the flight: the shell cancels what computes it.
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
        if flight.waiting or flight.is_refresh:
            return False
        self._end(flight)
        return True

    def refresh(self, key: bytes, now_ns: int, refreshes: Refreshes) -> Flight | None:
        """A flight without callers; ``None`` where one is in the air, or this may not begin yet."""
        if key in self._flights or not refreshes.may_begin(key, now_ns):
            return None
        refreshes.running += 1
        flight = self._flights[key] = Flight(key, refreshes, now_ns)
        return flight

    def flight(self, key: bytes) -> Flight | None:
        """The flight of a key."""
        return self._flights.get(key)

    def succeed(self, flight: Flight) -> list[Any]:
        """The value is there.

        Returns:
            The callers that are owed it; none where the flight was abandoned.
        """
        if flight.over:
            return []
        if flight.refreshes is not None:
            flight.refreshes.failing = False
        self._end(flight)
        told = list(flight.waiting)
        flight.waiting.clear()
        return told

    def fail(self, flight: Flight, now_ns: int, *, counts: bool = True, final: bool = False) -> tuple[list[Any], Any]:
        """The present attempt failed.

        Args:
            flight: whose.
            now_ns: the present instant, from which a refresh that failed pauses.
            counts: whether it is one of the ``max_attempts``.
            final: whether no other attempt can do better.

        Returns:
            The callers that are owed the error, and who leads now (it has to compute), or ``None``.
        """
        if flight.over:
            return [], None
        if flight.refreshes is not None and flight.leader is None:
            flight.refreshes.failed(flight.key, flight.begun_ns + self._pause_ns, now_ns)
        told = []
        if flight.leader is not None:
            told.append(flight.leader)
            del flight.waiting[flight.leader]
            flight.leader = None
        flight.failures += counts
        if not final and flight.failures < self._max_attempts:
            for caller in flight.waiting:
                if self._is_waiting(caller):
                    flight.leader = caller
                    return told, caller
        self._end(flight)
        told += flight.waiting
        flight.waiting.clear()
        return told, None

    def forget(self) -> None:
        """Every flight is over and nobody is told: what computed them is gone."""
        for flight in list(self._flights.values()):
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        flight.over = True
        flight.leader = None
        if flight.refreshes is not None:
            flight.refreshes.running -= 1
        del self._flights[flight.key]


def _reaches(start: Flight, goal: Flight) -> bool:
    """Whether ``start`` is ``goal``, or waits for it through others."""
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
