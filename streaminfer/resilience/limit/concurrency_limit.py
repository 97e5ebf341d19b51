"""`ConcurrencyLimit`: its settings, and the wrapping of services, backends and functions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.instants import NEVER_NS
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number, expected
from streaminfer._runtime.objective import is_slo_or_none
from streaminfer.protocols import Backend, Clock, P, R, Service, adapt, is_backend, is_service
from streaminfer.request import check_priority
from streaminfer.resilience._targets import refuse_copy
from streaminfer.resilience.limit._guard_cy import LimitCore
from streaminfer.resilience.limit._state_machine_cy import UNKNOWN, LimitMachine
from streaminfer.resilience.limit.layers import put_in_front
from streaminfer.resilience.limit.permit_queue import PermitQueue

if TYPE_CHECKING:
    from streaminfer.resilience.limit.statistics import LimitStatistics

__all__ = ["ConcurrencyLimit"]

_MOST = 1_000_000
_LONGEST_S = 1e9
_OPERATIONS = (
    "answer",
    "aim",
    "discard",
    "drain_ns",
    "is_tight",
    "look",
    "overload",
    "refuse_late",
    "release",
    "time_out",
    "try_acquire",
)
_Machine: type[LimitMachine] = thread_safe(LimitMachine, _OPERATIONS)


class ConcurrencyLimit(LimitCore):
    """Lets only so many calls be under way at once as can be answered in good time, and refuses the others at once.

    Without ``limit`` it finds out how many that is: as many as keep the workers busy while calls wait no longer than
    they should, by Little's law. Behind it, a batcher's answers tell waiting from service, so that bigger batches,
    which take longer, are not taken for congestion. How it learns is explained in ``_state_machine_cy``.

    It stands in front of a service, a backend or a function, with :meth:`wrap` or as a decorator; around a block, with
    :meth:`guard`; or is asked by hand, with :meth:`try_acquire` and :meth:`record`. What shares the object shares the
    places.

    Args:
        limit: a fixed limit; ``None``: it learns.
        initial: where learning starts.
        min_limit: the lowest that it learns, ≥ 1.
        max_limit: the highest.
        queue_delay_s: how long a call may wait before its batch begins, on average, when the limit is reached; a
            batch's own time at least. ``None``: so long that waiting and service are 0.7 of the objective: of ``slo``,
            else of the batcher behind; without one, as long as two batches take, or one call without load.
        reserve: the share of the limit that each step of priority above 0 leaves to more urgent calls: with 0.2,
            priority 1 sees 0.8 of it and priority 2 sees 0.64; at least one place.
        max_wait_s: how long a call may wait for a place, within its deadline, before it is refused; 0.0: it is refused
            at once. The most urgent call gets the next place, then the one that came first. Services, backends, async
            functions, ``async with guard()`` and :meth:`acquire` wait; what is synchronous does not.
        max_waiting: how many calls may wait at once; further ones are refused at once.
        slo: an `SLO`; while its budget burns (``slo.burning()``) the limit is tightened.
        tighten: to what share of itself the goal of an adaptive limit, or a fixed limit, falls while the SLO burns; it
            returns over half a minute. Above 0 and at most 1.
        name: for reports.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once, and no lock is held while a call runs. In the compiled build under the
    interpreter lock no lock is taken at all; run uncompiled, or without that lock, each operation takes one.

    Example:
        >>> limit = ConcurrencyLimit(limit=1)
        >>> with limit.guard():
        ...     limit.try_acquire()
        0
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        initial: int = 20,
        min_limit: int = 1,
        max_limit: int = 1000,
        queue_delay_s: float | None = None,
        reserve: float = 0.1,
        max_wait_s: float = 0.0,
        max_waiting: int = 100,
        slo: Any = None,
        tighten: float = 0.5,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        check_count("max_limit", max_limit, at_most=_MOST)
        check_count("min_limit", min_limit, at_most=max_limit)
        check_count("initial", initial, at_least=min_limit, at_most=max_limit)
        if limit is not None:
            check_count("limit", limit, at_most=_MOST)
        delay_ns = -1.0
        if queue_delay_s is not None:
            delay_ns = min(check_duration("queue_delay_s", queue_delay_s), _LONGEST_S) * 1e9
        reserve = check_number("reserve", reserve, "a share of at least 0 and below 1", lambda it: 0.0 <= it < 1.0)
        tighten = check_number("tighten", tighten, "a share above 0 and at most 1", lambda it: 0.0 < it <= 1.0)
        check_instance("slo", slo, functools.partial(is_slo_or_none, with_threshold=True), "an SLO or None")
        check_instance("name", name, lambda it: isinstance(it, str), "a string")
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        wait_s = min(check_duration("max_wait_s", max_wait_s), _LONGEST_S)
        check_count("max_waiting", max_waiting, at_most=_MOST)
        fixed = limit is not None
        machine = _Machine(
            float(initial if limit is None else limit),
            1 if fixed else min_limit,
            _MOST if fixed else max_limit,
            not fixed,
            reserve,
            tighten,
            delay_ns,
        )
        self.name = name
        self.adaptive = not fixed
        self._clock_given = clock is not None
        self._serial = itertools.count(1)
        self._permits: dict[int, int] = {}  # those given by hand → when their calls began
        super().__init__(machine, clock, slo)
        if wait_s:
            self._queue = PermitQueue(self, max(round(wait_s * 1e9), 1), max_waiting)

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Puts the limit in front of a service, a backend or a function; also what ``@limit`` does.

        Args:
            inner: a service (an object with ``call``), a backend (an object with ``infer``), whose batches are counted,
                or a sync or async function, which stays one.

        Returns:
            The same kind of thing. A limited service or backend keeps ``inner`` and answers ``admission``.

        Raises:
            TypeError: none of these, or a generator function, whose call ends before its work begins.
            ValueError: a backend, and the limit is not fixed: batches of different sizes take different times, which
                would pass for congestion. An adaptive limit stands in front of the batcher.
        """
        if self.adaptive and is_backend(inner) and not is_service(inner):
            raise ValueError(
                expected("inner", "a service or a function (an adaptive limit stands before the batcher)", inner)
            )
        if self._objective is None:
            self._objective = _objective_of(inner)
            self.aim()
        return put_in_front(self, inner)

    __call__ = wrap

    def try_acquire(self, *, priority: int = 0, deadline_ns: int | None = None) -> int:
        """Asks for permission to make one call.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Returns:
            A permit, to be given to :meth:`record` or :meth:`release` when the call is over; 0 when it is refused.

        Raises:
            InvalidInput: ``priority`` is no whole number of 32 bits.
        """
        check_priority(priority)
        began_ns = self._machine.try_acquire(priority, NEVER_NS if deadline_ns is None else deadline_ns, self.now())
        return self._give_out(began_ns) if began_ns > 0 else 0

    async def acquire(self, *, priority: int = 0, deadline_ns: int | None = None) -> int:
        """Waits for permission to make one call, at most ``max_wait_s``.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Returns:
            A permit, as of :meth:`try_acquire`.

        Raises:
            InvalidInput: ``priority`` is no whole number of 32 bits.
            Overloaded: there was no place in that time, or too many calls wait.
            DeadlineExceeded: there was none before the deadline, or the call would be late.
        """
        check_priority(priority)
        if self._queue is None:
            return self._give_out(self.enter(priority, deadline_ns, None, None))
        return self._give_out(await self._queue.enter(priority, deadline_ns, None, None))

    def _give_out(self, began_ns: int) -> int:
        permit = next(self._serial)
        self._permits[permit] = began_ns
        return permit

    def record(self, permit: int, *, queued_s: float | None = None) -> None:
        """Gives a permit back after a call that was answered, and learns from it.

        0 is ignored, and so is a permit that is not out, which ``statistics().stale`` counts.

        Args:
            permit: what :meth:`try_acquire` gave.
            queued_s: how long the call waited before its batch began; ``None``: nothing tells.

        Raises:
            TypeError, ValueError: ``queued_s`` is no duration; the permit is given back all the same.
        """
        began_ns = self._take_back(permit)
        if not began_ns:
            return
        now_ns = self.now()
        try:
            queued_ns = UNKNOWN if queued_s is None else round(min(check_duration("queued_s", queued_s), 1e9) * 1e9)
        except (TypeError, ValueError):
            self.fail(began_ns, None, None)
            raise
        if self._machine.answer(began_ns, queued_ns, now_ns, now_ns):
            self.aim()
        if self._queue is not None:
            self._queue.freed()

    def release(self, permit: int) -> None:
        """Gives a permit back with nothing learned: the call failed, was cancelled or never made.

        0 is ignored, and so is a permit that is not out, which ``statistics().stale`` counts.
        """
        began_ns = self._take_back(permit)
        if began_ns:
            self.fail(began_ns, None, None)

    def _take_back(self, permit: int) -> int:
        """When the call of a permit began; 0: it is not out."""
        began_ns = self._permits.pop(permit, 0)
        if permit and not began_ns:
            self._machine.discard()
        return began_ns

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._machine.in_flight

    @property
    def allowed(self) -> int:
        """How many calls may be under way now."""
        return self._machine.allowed

    @property
    def retry_after_s(self) -> float:
        """Seconds in which what is under way is expected to be done, as fast as calls came back lately."""
        return self._machine.drain_ns(self.now()) / 1e9

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self._clock = clock
            self._clock_given = True

    def statistics(self) -> LimitStatistics:
        """A frozen snapshot."""
        from streaminfer.resilience.limit.statistics import LimitStatistics  # noqa: PLC0415 - who asks for a snapshot loads what it is made of

        machine = self._machine
        return LimitStatistics(
            name=self.name,
            adaptive=self.adaptive,
            limit=machine.limit,
            allowed=machine.allowed,
            in_flight=machine.in_flight,
            waiting=0 if self._queue is None else len(self._queue),
            abandoned=0 if self._queue is None else self._queue.abandoned,
            goal_s=machine.goal_ns / 1e9,
            waited_s=machine.waited_ns / 1e9,
            service_s=machine.service_ns / 1e9,
            rate_per_s=1e9 / machine.interval_ns if machine.interval_ns else 0.0,
            retry_after_s=self.retry_after_s,
            burning=machine.burning,
            refused=machine.refused,
            late=machine.late,
            answered=machine.answered,
            timed_out=machine.timed_out,
            overloaded=machine.overloaded,
            released=machine.released,
            stale=machine.stale,
            rounds=machine.rounds,
        )

    __reduce__ = refuse_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<ConcurrencyLimit({name}{self.in_flight} of {self.allowed})>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()


def _objective_of(inner: Any) -> Callable[[], int | None] | None:
    """What reads the objective of the nearest thing behind that has one: it may change while it runs."""
    slo = adapt(inner).capabilities().slo
    return None if slo is None else lambda: slo.slo_ns
