"""Single flight for the tasks of one event loop.

*Design.* A computation runs in its own task, in the context of its leader. Each waiting task awaits its own
:class:`Caller`, so cancelling one does not affect the others. When the last has left, the computation's task is
cancelled. Flights belong to one event loop: callers on two loops compute a key once each.

*Complexity.* All callers of a cold key begin in one turn of the loop and end in one, so the last caller waits for the
cost of all the others. A caller is therefore a single object. It is the awaitable (a coroutine with one suspension)
and also the future that its task waits for, by asyncio's protocol for foreign futures (``_asyncio_future_blocking``,
``add_done_callback``, ``get_loop``, ``result``, ``cancel``). Two asyncio objects and a coroutine around them would cost
more, also in the garbage collector. One pass in the done callback of the computation's task wakes all waiters, without
an event loop handle for each. If a woken task raises an error that ends the loop, the loop wakes the others.

One source, compiled with the C types of ``_loop_flights_cy.pxd`` or run as plain Python.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from streaminfer.caching.single_flight._flight_cy import Flight, FlightCounts, FlightTable, Refreshes
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT, FLIGHTS_LOCK, LOG, end_attempt, enter
from streaminfer.errors import Closed, DeadlineExceeded, copy_error

__all__ = ["LATE_S", "Caller", "LoopFlights", "Work"]

LATE_S = 10.0  # extra time for one late refresh, so that the cache notices when a backend has become slower
_GRACE_S = 1.0  # for a computation that was cancelled
_FRESH = 0
_WAITS = 1
_VALUE = 2
_ERROR = 3
_OVER = 4

Work = tuple[Any, ...]  # a coroutine function and its arguments; cheaper than a `partial` for each of many callers


class Caller:
    """Awaitable of one caller in a task; made by :meth:`LoopFlights.share`, and awaited once.

    It joins its flight when it is awaited, not before. Until then asyncio treats it as a coroutine: ``gather`` and
    ``wait_for`` put it into a task.
    """

    _flights: LoopFlights
    _loop: Any
    _context: Context
    _result: Any  # (value, whether it led), or an error
    _timeout_s: float | None
    _enforced: bool
    key: Any
    work: Work
    owner: Any

    def __init__(self) -> None:
        self._state = _FRESH
        self._asyncio_future_blocking: bool | None = None  # None: asyncio does not see a future yet
        self._flight: Flight | None = None
        self._around: Flight | None = None  # the flight whose computation makes this call
        self._timer: asyncio.TimerHandle | None = None
        self._wakeup: Callable[[Any], object] | None = None

    # -- awaitable ----------------------------------------------------------------------------------------------

    def __await__(self) -> Caller:
        return self

    def __iter__(self) -> Caller:
        return self

    def __next__(self) -> Caller:
        state = self._state
        if state == _FRESH:
            self._join()
            return self
        if state == _OVER:
            raise RuntimeError("this was awaited before")
        if state == _WAITS:
            raise RuntimeError("a task continued before it was told what it waits for")
        self._leave_flight()
        raise StopIteration(self.result())

    def send(self, _: None) -> Caller:
        """Take one step, as a coroutine does."""
        return self.__next__()

    def throw(self, kind: Any, value: Any = None, _: Any = None) -> Caller:
        """End with an error, as a coroutine that does not catch it."""
        self._leave_flight()
        error: BaseException = kind if isinstance(kind, BaseException) else kind() if value is None else value
        try:
            raise error
        finally:
            del error, kind, value  # the error's traceback holds this frame

    def close(self) -> None:
        """End, as a coroutine does."""
        self._leave_flight()

    def _join(self) -> None:
        flights = self._flights
        loop: Any = flights.loop()
        self._loop = loop
        inside = CURRENT_FLIGHT.get()
        around = None if inside is None else inside.flight
        self._state = _OVER
        with FLIGHTS_LOCK:
            flight = flights.table.join(self.key, self, around)
        leads = flight.leader is self
        self._state = _WAITS
        self._flight = flight
        self._around = around
        timeout_s = self._timeout_s
        try:
            if leads:
                flights._begin(flight, self.work, self.owner, copy_context())
            if timeout_s is not None and not (leads and self._enforced):
                self._timer = loop.call_later(timeout_s, self._expire)
        except BaseException:
            self._leave_flight()
            raise
        self._asyncio_future_blocking = True

    def _leave_flight(self) -> None:
        """Leave the flight, notified or not."""
        has_value = self._state == _VALUE
        flight = self._flight
        self._state = _OVER
        if self._timer is not None:
            self._timer.cancel()
        if flight is not None:
            self._flight = None
            if not has_value or self._around is not None:  # otherwise the flight is over, and there is nothing to leave
                with FLIGHTS_LOCK:
                    abandoned = self._flights.table.leave(flight, self, self._around)
                if abandoned and flight.computing is not None:
                    flight.computing.cancel()

    # -- future of its task ---------------------------------------------------------------------------------------

    def get_loop(self) -> Any:
        """Return the loop on which it is awaited."""
        return self._loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        """Take the callback that wakes its task; asyncio calls this once."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> Any:
        """Return the value and whether this caller led, or raise the error."""
        result = self._result
        if isinstance(result, BaseException):
            self._result = None
            try:
                raise result
            finally:
                del result  # the error's traceback holds this frame
        return result

    def cancel(self, msg: Any = None) -> bool:
        """Cancel its task at the loop's next turn; return false if the task was already notified."""
        if self._state != _WAITS:
            return False
        self._set_outcome(_ERROR, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        self._wake(True)
        return True

    @property
    def expires_s(self) -> float | None:
        """Instant at which its timeout ends, on the loop's clock; ``None`` without a timeout."""
        timer = self._timer
        return None if timer is None else timer.when()

    def _expire(self) -> None:
        if self._state == _WAITS:
            self._set_outcome(_ERROR, DeadlineExceeded(f"the deadline passed after {self._timeout_s:.6f} s"))
            self._wake(False)

    def _set_outcome(self, state: int, result: Any) -> None:
        self._state = state
        self._result = result

    def _wake(self, soon: bool) -> None:
        wakeup = self._wakeup
        if wakeup is None:  # already woken
            return
        self._wakeup = None
        try:
            if soon:
                self._loop.call_soon(wakeup, self, context=self._context)
            else:
                self._context.run(wakeup, self)
        finally:
            del wakeup  # it refers to the task, and the error of the task to this frame, as to all that wake the task


class LoopFlights:
    """Flights of one event loop; use it on that loop only.

    Args:
        loop: the loop.
        counts: counts of the cache.
        now: reads the cache's clock.

    Attributes:
        table: the flights.
        loop: a weak reference to the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: FlightCounts, now: Callable[[], int]) -> None:
        self.table = FlightTable(counts, _waits)
        self._now = now
        self.loop = weakref.ref(loop)  # the dictionary of loops must not keep its own keys alive
        self._owners: dict[asyncio.Task[Any], tuple[Any, Flight]] = {}  # by running computation: its owner and flight

    def share(
        self, key: Any, work: Work, *, timeout_s: float | None = None, enforced: bool = False, owner: Any = None
    ) -> Caller:
        """Return the value of a key, computed once for all concurrent callers.

        Args:
            key: of the value.
            work: a coroutine function and its arguments, which computes the value if this caller leads.
            timeout_s: seconds after which this caller leaves; ``None``: never.
            enforced: whether a computation that this caller leads ends at that time without a timer.
            owner: the object whose ``stop`` ends the computation.

        Returns:
            An awaitable, for one use: the value, and whether this caller led the computation.

        Raises (when it is awaited):
            DeadlineExceeded: ``timeout_s`` has passed.
            RuntimeError: the caller is inside the computation of the same key.
            BaseException: the error of the computation.
        """
        caller = Caller()
        caller._flights = self
        caller.key = key
        caller.work = work
        caller.owner = owner
        caller._timeout_s = timeout_s
        caller._enforced = enforced
        return caller

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
            self._fail(flight, Closed("the service stopped before it could answer"), True)

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
            try:
                self._fail(flight, error)
            finally:
                del task, error  # as in `Caller._wake`

    def _succeed(self, flight: Flight, value: Any) -> None:
        leader = flight.leader
        leaders, others = (value, True), (value, False)
        with FLIGHTS_LOCK:
            callers = self.table.succeed(flight)
        for caller in callers:
            if _waits(caller):
                caller._set_outcome(_VALUE, leaders if caller is leader else others)
        _wake(callers)

    def _fail(self, flight: Flight, error: BaseException, final: bool = False) -> None:
        original = flight.leader
        callers, leader = end_attempt(self.table, flight, error, final=final)
        for caller in callers:
            if _waits(caller):
                caller._set_outcome(_ERROR, error if caller is original else copy_error(error))
        if leader is not None:
            self._begin(flight, leader.work, leader.owner, leader._context.copy())
        del error  # as in `Caller._wake`
        _wake(callers)


async def _computation(flight: Flight, work: Work) -> Any:
    enter(flight)
    value = await work[0](*work[1:])
    context: Any = CURRENT_FLIGHT.get()
    flight.discards = not context.store
    return value


def _waits(caller: Caller) -> bool:
    """Return whether a caller still waits, so that it can be notified and may lead."""
    return caller._state == _WAITS


def _wake(callers: list[Caller]) -> None:
    """Continue the tasks of all callers now, one after another."""
    try:
        for caller in callers:
            caller._wake(False)
    except BaseException:  # one of the tasks raised KeyboardInterrupt or SystemExit
        for caller in callers:
            caller._wake(True)
        raise
