"""Single flight for the tasks of one event loop.

*Design.* A computation runs in its own task, in the context of its leader. Each waiting task awaits its own future, so
cancelling one does not affect the others. When the last has left, the computation's task is cancelled. Flights belong
to one event loop: callers on two loops compute a key once each.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from streaminfer.caching.single_flight._flight_cy import Flight, FlightCounts, Refreshes
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT, FLIGHTS_LOCK, LOG, Flights, attempt
from streaminfer.errors import Closed, DeadlineExceeded

__all__ = ["LATE_S", "LoopFlights", "Work"]

LATE_S = 10.0  # extra time for one late refresh, so that the cache notices when a backend has become slower
_GRACE_S = 1.0  # for a computation that was cancelled

Work = tuple[Any, ...]  # a coroutine function and its arguments; cheaper than a `partial` for each of many callers


class LoopFlights(Flights):
    """Flights of one event loop; use it on that loop only.

    Args:
        loop: the loop.
        counts: counts of the cache.
        now: reads the cache's clock.

    Attributes:
        loop: a weak reference to the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: FlightCounts, now: Callable[[], int]) -> None:
        super().__init__(counts, now)
        self.loop = weakref.ref(loop)  # the dictionary of loops must not keep its own keys alive
        self._owners: dict[asyncio.Task[Any], tuple[Any, Flight]] = {}  # by running computation: its owner and flight

    async def share(
        self, key: Any, work: Work, *, timeout_s: float | None = None, enforced: bool = False, owner: Any = None
    ) -> tuple[Any, bool]:
        """Return the value of a key, computed once for all concurrent callers.

        Args:
            key: of the value.
            work: a coroutine function and its arguments, which computes the value if this caller leads.
            timeout_s: seconds after which this caller leaves; ``None``: never.
            enforced: whether a computation that this caller leads ends at that time without a timer.
            owner: the object whose ``stop`` ends the computation.

        Returns:
            The value, and whether this caller led the computation.

        Raises:
            DeadlineExceeded: ``timeout_s`` has passed.
            RuntimeError: the caller is inside the computation of the same key.
            BaseException: the error of the computation.
        """
        loop: Any = self.loop()  # faster than asking for the running one
        inside = CURRENT_FLIGHT.get()
        around = None if inside is None else inside.flight  # the flight whose computation makes this call
        caller: asyncio.Future[tuple[Any, bool]] = loop.create_future()
        ends_s = None if timeout_s is None else loop.time() + timeout_s
        timer = None
        with FLIGHTS_LOCK:
            flight = self.table.join(key, caller, around, (work, owner, copy_context(), ends_s))
        try:
            leads = flight.leader is caller
            if leads:
                self._lead(flight, caller)
            if ends_s is not None and not (leads and enforced):
                timer = loop.call_at(ends_s, _expire, caller, timeout_s)
            return await caller
        finally:
            if timer is not None:
                timer.cancel()
            if not flight.over or around is not None:  # otherwise there is nothing to leave
                with FLIGHTS_LOCK:
                    abandoned = self.table.leave(flight, caller, around)
                if abandoned and flight.computing is not None:
                    flight.computing.cancel()
            del caller  # it holds the error, whose traceback holds this frame

    def refresh(
        self, key: Any, work: Work, *, refreshes: Refreshes, limit_s: float, owner: Any = None, entry: Any = None
    ) -> None:
        """Compute a key in the background while its stale value is used, unless it is in flight or too many keys are.

        After ``limit_s`` the computation is cancelled and the key is free for others. One late computation per owner
        first gets :data:`LATE_S` more.

        Args:
            key: of the value.
            work: a coroutine function and its arguments, which computes the value.
            refreshes: of the wrapped service.
            limit_s: how long it may take.
            owner: the object whose ``stop`` ends the computation.
            entry: the entry that it renews, if flights of several keys can; ``None``: the key.
        """
        with FLIGHTS_LOCK:
            flight = self.table.refresh(key, self._now(), refreshes, entry)
        if flight is None:
            return
        self._begin(flight, work, owner, copy_context())
        self._call_unless_done(flight.computing, limit_s, partial(self._on_late_refresh, flight, limit_s))

    def _on_late_refresh(self, flight: Flight, limit_s: float) -> None:
        task = flight.computing
        if task is None:
            return  # it ignored the cancellation of a stop, and has no flight left
        owner = self._owners[task][0]
        another = any(self._is_late(late) for late, entry in self._owners.items() if entry[0] is owner)
        flight.computing = None
        if another:
            task.cancel()
        else:
            self._call_unless_done(task, LATE_S, task.cancel)
        self._fail(flight, DeadlineExceeded(f"a refresh took longer than {limit_s:g} s"))

    def _call_unless_done(self, task: asyncio.Task[Any], after_s: float, call: Callable[[], object]) -> None:
        """Call a function after a delay, unless a task has ended by then."""
        timer = get_running_loop().call_later(after_s, call, context=Context())
        task.add_done_callback(lambda _: timer.cancel())

    def _is_late(self, task: asyncio.Task[Any]) -> bool:
        """Return whether a computation is a late refresh, which its flight has detached."""
        return self._owners[task][1].computing is not task

    async def stop(self, owner: Any, *, drain: bool) -> None:
        """End the computations of one owner; leave alone those that still run one second after their cancellation.

        Args:
            owner: of the computations.
            drain: true waits for them, except for late refreshes; false cancels them, and their waiters get ``Closed``.
        """
        while tasks := [task for task, entry in self._owners.items() if entry[0] is owner]:
            awaited = [task for task in tasks if drain and not self._is_late(task)]
            if awaited:
                await asyncio.wait(awaited)  # their done callbacks have run and may have begun others
                continue
            for task in tasks:
                task.cancel()
                get_running_loop().call_soon(self._fail_stopped, self._owners[task][1], task)  # not inside this task
            _, pending = await asyncio.wait(tasks, timeout=_GRACE_S)
            for task in pending:
                LOG.warning("a computation runs %g s after it was cancelled: %r", _GRACE_S, task)
                del self._owners[task]

    def _fail_stopped(self, flight: Flight, task: asyncio.Task[Any]) -> None:
        if flight.computing is task:
            flight.computing = None
            self._fail(flight, Closed("the service stopped before it could answer"), final=True)

    def _lead(self, flight: Flight, leader: Any) -> None:
        self._begin(flight, *flight.waiting[leader][:3])

    def _begin(self, flight: Flight, work: Work, owner: Any, context: Context) -> None:
        flight.computing = task = get_running_loop().create_task(_computation(flight, work), context=context)
        self._owners[task] = (owner, flight)
        task.add_done_callback(partial(self._on_task_done, flight))

    def _on_task_done(self, flight: Flight, task: asyncio.Task[Any]) -> None:
        self._owners.pop(task, None)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if flight.computing is not task:
            return  # a late refresh: its flight is over or has another computation
        flight.computing = None  # it holds the value, and contexts hold the flight
        if error is None:
            self._succeed(flight, task.result())
        elif not flight.over:  # otherwise it was abandoned, and no caller waits
            self._fail(flight, error)


async def _computation(flight: Flight, work: Work) -> Any:
    with attempt(flight):
        return await work[0](*work[1:])


def _expire(caller: asyncio.Future[Any], timeout_s: float) -> None:
    if not caller.done():
        caller.set_exception(DeadlineExceeded(f"the deadline passed after {timeout_s:.6f} s"))
