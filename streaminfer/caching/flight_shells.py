"""Single flight for tasks of an event loop and for threads: what runs the computations that a `FlightBoard` hands out.

**Tasks.** A computation runs in a task of its own, in the context of the caller that leads it; callers wait for a
future each. So a caller that is cancelled takes away its own future and nothing else; when the last one has left, the
task is cancelled. Flights belong to one event loop: callers of two loops that ask for the same key compute it once
each.

**Threads.** The leader computes in its own thread; the others wait for an event each. A leader whose computation
raises, even ``KeyboardInterrupt``, hands over before it lets go.

Which flight a computation belongs to is a context variable, so it is known in whatever tasks, and threads started by
``asyncio.to_thread``, the computation uses. A thread that does not inherit the context is not seen: if it asks for the
key that it is computing it waits for ever, as with any lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any

import attrs

from streaminfer.caching.flight import Flight, FlightBoard
from streaminfer.caching.kept import own_error
from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput

__all__ = ["FlightStatistics", "Flights", "LoopFlights", "ThreadFlights", "no_store", "storable"]

_LOG = logging.getLogger("streaminfer.caching")
_MOST_ATTEMPTS = 3
_PAUSE_NS = 1_000_000_000
_MOST_REFRESH_THREADS = 8

_BOARDS = threading.Lock()  # one for all: the graph of who waits for whom goes from cache to cache


@attrs.frozen(kw_only=True)
class FlightStatistics:
    """What single flight did; counts since the cache was made.

    Attributes:
        computations: attempts begun: the first, those after a failure, and refreshes.
        joined: callers that found their key being computed and waited.
        failures: attempts that ended with an error, refreshes included.
        handed_over: attempts begun by a caller that had waited, since the one before had failed.
        abandoned: computations cancelled because nobody waited any more.
        refreshes: computations begun behind a stale answer.
        refresh_failures: of these, how many failed; each is also logged, as a warning of ``streaminfer.caching``.
        not_stored: answers that were given and not kept though they might have been: the cache refused them, or
            something was erased while they were computed.
        in_the_air: computations that somebody waits for, and refreshes, at present.
    """

    computations: int
    joined: int
    failures: int
    handed_over: int
    abandoned: int
    refreshes: int
    refresh_failures: int
    not_stored: int
    in_the_air: int


class _Inside:
    """The computation that runs in this context."""

    __slots__ = ("flight", "store")

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.store = True


_INSIDE: contextvars.ContextVar[_Inside | None] = contextvars.ContextVar("streaminfer_computation", default=None)


def no_store() -> None:
    """Says, from inside a computation, that its answer is not to be kept; those who wait for it get it all the same.

    Without a cache around it, nothing happens.
    """
    inside = _INSIDE.get()
    if inside is not None:
        inside.store = False


def storable() -> bool:
    """Whether the computation that runs in this context has not said :func:`no_store`."""
    inside = _INSIDE.get()
    return inside is None or inside.store


def _present() -> Flight | None:
    inside = _INSIDE.get()
    return None if inside is None else inside.flight


class Flights:
    """All that is being computed for one cache, by threads and on event loops; a cache has one."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys((field.name for field in attrs.fields(FlightStatistics)), 0)
        del self.counts["in_the_air"]
        self.threads = ThreadFlights(self.counts)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlights] = weakref.WeakKeyDictionary()
        self._latest: LoopFlights | None = None

    def here(self) -> LoopFlights:
        """Those of the running event loop."""
        loop = get_running_loop()
        latest = self._latest  # nearly always: to look in the table of loops costs as much as to join a flight
        if latest is not None and latest.loop() is loop:
            return latest
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = LoopFlights(loop, self.counts)
        self._latest = found
        return found

    def not_stored(self, refusal: Exception | None = None) -> None:
        """Counts an answer that could not be kept, and logs why the cache refused it."""
        with _BOARDS:
            self.counts["not_stored"] += 1
        if refusal is not None:
            _LOG.warning("an answer was not kept: %s: %s", type(refusal).__name__, refusal, exc_info=refusal)

    def statistics(self) -> FlightStatistics:
        """A frozen snapshot."""
        with _BOARDS:
            flying = len(self.threads.board) + sum(len(flights.board) for flights in list(self._loops.values()))
            return FlightStatistics(in_the_air=flying, **self.counts)


class LoopFlights:
    """The flights of one event loop; used on it alone.

    Args:
        loop: the loop.
        counts: where to count.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: dict[str, int]) -> None:
        self.board = FlightBoard(_MOST_ATTEMPTS, _PAUSE_NS, lambda caller: not caller.done())
        self.loop = weakref.ref(loop)  # the table of loops must not keep its own keys alive
        self._counts = counts
        self._owners: dict[asyncio.Task[Any], Any] = {}  # every computation that runs, and whose it is
        self._stopping: set[asyncio.Task[Any]] = set()

    async def share(
        self,
        key: Any,
        compute: Callable[..., Coroutine[Any, Any, Any]],
        arguments: tuple[Any, ...],
        now: Callable[[], int],
        *,
        timeout_s: float | None = None,
        enforced: bool = False,
        owner: Any = None,
    ) -> tuple[Any, bool]:
        """The value of a key, computed once for all who ask for it meanwhile.

        Args:
            key: what for.
            compute: begins a computation, if this caller has to lead.
            arguments: what it is called with.
            now: reads the cache's clock.
            timeout_s: seconds after which this caller waits no longer; ``None``: as long as it takes.
            enforced: a computation that this caller leads ends at that time by itself.
            owner: what ``stop`` of the same owner ends.

        Returns:
            The value, and whether this caller led the computation that made it.

        Raises:
            DeadlineExceeded: the time is over.
            RuntimeError: the caller is inside the computation of the same key.
            BaseException: what the computation raised.
        """
        # a thousand callers may ask at once and all wait for this to be done for each: few calls, and few objects,
        # which the garbage collector would go through
        loop = get_running_loop()
        caller = loop.create_future()
        inside = _INSIDE.get()
        around = None if inside is None else inside.flight
        work = (compute, arguments, now, owner, copy_context())
        with _BOARDS:
            flight = self.board.join(key, caller, around, work)
            leads = flight.leader is caller
            self._counts["computations" if leads else "joined"] += 1
        timer = None
        try:
            if leads:
                self._begin(flight, work)
            if timeout_s is not None and not (leads and enforced):
                timer = loop.call_later(timeout_s, _expire, caller, timeout_s)
            shared: tuple[Any, bool] = await caller
        except BaseException:
            if not caller.done():
                caller.cancel()
            elif not caller.cancelled():
                caller.exception()  # a cancelled caller does not take it
            self._leave(flight, caller, around)
            raise
        else:
            if around is not None:  # otherwise there is nothing to leave: the flight is over
                self._leave(flight, caller, around)
            return shared
        finally:
            if timer is not None:
                timer.cancel()

    def _leave(self, flight: Flight, caller: asyncio.Future[Any], around: Flight | None) -> None:
        with _BOARDS:
            abandoned = self.board.leave(flight, caller, around)
            self._counts["abandoned"] += abandoned
        if abandoned and flight.computing is not None:
            flight.computing.cancel()

    def refresh(
        self,
        key: Any,
        compute: Callable[..., Coroutine[Any, Any, Any]],
        arguments: tuple[Any, ...],
        now: Callable[[], int],
        *,
        owner: Any = None,
    ) -> None:
        """Computes a key behind its stale value, unless somebody does; arguments as of :meth:`share`."""
        with _BOARDS:
            flight = self.board.refresh(key, now())
            if flight is None:
                return
            self._counts["computations"] += 1
            self._counts["refreshes"] += 1
        self._begin(flight, (compute, arguments, now, owner, copy_context()))

    def _begin(self, flight: Flight, work: _Work) -> None:
        compute, arguments, now, owner, context = work
        computation = _computation(flight, compute, arguments)
        flight.computing = task = get_running_loop().create_task(computation, context=context)
        self._owners[task] = owner
        task.add_done_callback(partial(self._landed, flight, now))

    def _landed(self, flight: Flight, now: Callable[[], int], task: asyncio.Task[Any]) -> None:
        del self._owners[task]
        stopped = task in self._stopping
        self._stopping.discard(task)
        error: BaseException | None
        if task.cancelled():
            error = Closed("the service stopped before it could answer") if stopped else asyncio.CancelledError()
        else:
            error = task.exception()
        if error is None:
            leader = flight.leader
            leaders, others = (task.result(), True), (task.result(), False)
            with _BOARDS:
                told = self.board.succeed(flight)
            for caller in told:
                if not caller.done():
                    caller.set_result(leaders if caller is leader else others)
        elif not flight.over:  # else it was abandoned: this is its cancellation, or what came of it, and nobody waits
            self._fail(flight, error, now)

    def _fail(self, flight: Flight, error: BaseException, now: Callable[[], int]) -> None:
        refreshed = flight.is_refresh and flight.leader is None
        original = flight.leader
        with _BOARDS:
            self._counts["failures"] += 1
            self._counts["refresh_failures"] += refreshed
            final = isinstance(error, InvalidInput)
            told, leader = self.board.fail(flight, now(), counts=_counts(error), final=final)
            self._counts["handed_over"] += leader is not None
            self._counts["computations"] += leader is not None
        if refreshed:
            _report(error)
        for caller in told:
            if caller.done():
                continue
            if isinstance(error, asyncio.CancelledError):
                caller.cancel()
            else:
                caller.set_exception(error if caller is original else own_error(error))
        if leader is not None:
            self._begin(flight, flight.waiting[leader])

    async def stop(self, owner: Any, *, drain: bool) -> None:
        """Ends the computations of one owner.

        Args:
            owner: whose.
            drain: let them end by themselves; otherwise who waits for them gets ``Closed``.
        """
        while tasks := [task for task, whose in self._owners.items() if whose is owner]:
            if not drain:
                self._stopping.update(tasks)
                for task in tasks:
                    task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their done callbacks, which may begin others


async def _computation(
    flight: Flight, compute: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...]
) -> Any:
    _INSIDE.set(_Inside(flight))
    return await compute(*arguments)


_Work = tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...], Callable[[], int], Any, contextvars.Context]


def _expire(future: asyncio.Future[Any], timeout_s: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(f"the deadline passed after {timeout_s:.6f} s"))


def _counts(error: BaseException) -> bool:
    """Whether an error says something about the key, and not about its leader alone."""
    return not isinstance(error, (DeadlineExceeded, Closed, asyncio.CancelledError))


def _report(error: BaseException) -> None:
    _LOG.warning("a refresh behind a stale answer failed: %s: %s", type(error).__name__, error, exc_info=error)


class _Waiter:
    """One that waits in a thread."""

    __slots__ = ("error", "event", "leads", "value")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.leads = False
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
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self.board = FlightBoard(_MOST_ATTEMPTS, _PAUSE_NS, lambda _: True)
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
        """The value of a key, computed once for all who ask for it meanwhile; see :meth:`LoopFlights.share`.

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
        with _BOARDS:
            flight = self.board.join(key, waiter, inside)
            waiter.leads = flight.leader is waiter
            self._counts["computations" if waiter.leads else "joined"] += 1
        error: BaseException = RuntimeError("the thread that computed this was interrupted")
        try:
            if not waiter.leads:
                waiter.event.wait()
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
            with _BOARDS:
                owes = flight.leader is waiter  # the others are owed an end, however this one ended itself
                if not owes:
                    self.board.leave(flight, waiter, inside)
            if owes:
                self._fail(flight, error, now())
                with _BOARDS:
                    self.board.leave(flight, waiter, inside)
            del error  # its traceback holds this frame

    def refresh(
        self, key: Any, compute: Callable[..., Any], arguments: tuple[Any, ...], now: Callable[[], int]
    ) -> None:
        """Computes a key behind its stale value in a thread, unless somebody does, or too many threads do."""
        with _BOARDS:
            flight = self.board.refresh(key, now()) if self._refreshing < _MOST_REFRESH_THREADS else None
            if flight is None:
                return
            self._refreshing += 1
            self._counts["computations"] += 1
            self._counts["refreshes"] += 1
        work = partial(copy_context().run, self._refresh, flight, compute, arguments, now)
        try:
            threading.Thread(target=work, name="streaminfer-cache-refresh", daemon=True).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            with _BOARDS:
                self._refreshing -= 1
            self._fail(flight, error, now())

    def _refresh(
        self, flight: Flight, compute: Callable[..., Any], arguments: tuple[Any, ...], now: Callable[[], int]
    ) -> None:
        try:
            self._succeed(flight, _compute_in(flight, compute, arguments))
        except BaseException as error:  # noqa: BLE001 - reported; there is nobody to raise it to
            self._fail(flight, error, now())
        finally:
            with _BOARDS:
                self._refreshing -= 1

    def _succeed(self, flight: Flight, value: Any) -> None:
        with _BOARDS:
            told = self.board.succeed(flight)
        for waiter in told:
            waiter.value = value
            waiter.event.set()

    def _fail(self, flight: Flight, error: BaseException, now_ns: int) -> None:
        refreshed = flight.is_refresh and flight.leader is None
        original = flight.leader
        with _BOARDS:
            self._counts["failures"] += 1
            self._counts["refresh_failures"] += refreshed
            counts = isinstance(error, Exception) and _counts(error)
            told, leader = self.board.fail(flight, now_ns, counts=counts, final=isinstance(error, InvalidInput))
            if leader is not None:
                self._counts["handed_over"] += 1
                self._counts["computations"] += 1
                leader.leads = True
        if refreshed:
            _report(error)
        for waiter in told:
            if waiter is not original:
                waiter.error = own_error(error)
                waiter.event.set()
        if leader is not None:
            leader.event.set()


_THREAD_FLIGHTS: weakref.WeakSet[ThreadFlights] = weakref.WeakSet()


def _after_fork() -> None:
    global _BOARDS  # noqa: PLW0603 - a thread that is not here any more may have held it
    _BOARDS = threading.Lock()
    for flights in list(_THREAD_FLIGHTS):
        flights.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compute_in(flight: Flight, compute: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    token = _INSIDE.set(_Inside(flight))
    try:
        return compute(*arguments)
    finally:
        _INSIDE.reset(token)
