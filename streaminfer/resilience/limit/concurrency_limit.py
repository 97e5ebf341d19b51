"""`ConcurrencyLimit`: its settings, and the wrapping of services, backends and functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.forking import call_in_child
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, check_number, expected
from streaminfer._runtime.objective import BurnsAtThreshold
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.protocols import Backend, Clock, P, R, Service, adapt, is_backend, is_service
from streaminfer.request import check_priority
from streaminfer.resilience._targets import reject_copy, wrap_by_kind
from streaminfer.resilience.limit._adaptation_cy import LimitAdaptation
from streaminfer.resilience.limit._guard_cy import LimitCore
from streaminfer.resilience.limit._state_machine_cy import UNKNOWN, LimitMachine
from streaminfer.resilience.limit.layers import LimitedBackend, LimitedService, QueuedService, limit_async, limit_sync
from streaminfer.resilience.limit.permit_queue import PermitQueue

if TYPE_CHECKING:
    from streaminfer.resilience.limit.statistics import LimitStatistics

__all__ = ["ConcurrencyLimit"]

_MAX_CALLS = 1_000_000
_INITIAL = 20
_Machine: type[LimitMachine] = thread_safe(LimitMachine)


class ConcurrencyLimit(StackClock, LimitCore):
    """Limits how many calls are in flight, and rejects further ones at once.

    Without ``limit`` it learns the limit by Little's law: as many calls as keep the workers busy without too long a
    queue. A batcher's timings separate queueing from service, so bigger batches, which take longer, do not count as
    congestion. ``_adaptation_cy`` explains how it learns.

    Wrap a service, a backend or a function with :meth:`wrap` or as a decorator, or a block with :meth:`guard`; or call
    :meth:`try_acquire` and :meth:`record` by hand. All uses of one object share its permits.

    Args:
        limit: a fixed limit; ``None``: the limit is learned.
        initial: where learning starts; ``None``: at 20, or at the nearest that ``min_limit`` and ``max_limit`` allow.
        min_limit: the lowest limit that it learns, ≥ 1.
        max_limit: the highest limit that it learns.
        queue_delay_s: mean seconds that a call may be queued before its batch begins, when the limit is reached; at
            least the time of a batch. ``None``: chosen so that queueing and service take 0.7 of the objective of
            ``slo`` or of the inner batcher; without an objective, the time of two batches, or of one call without load.
        reserve: the share of the limit that each step of priority above 0 leaves to more urgent calls: with 0.2,
            priority 1 sees 0.8 of it and priority 2 sees 0.64; at least one permit.
        max_wait_s: seconds that a call may be queued for a permit, within its deadline; 0.0: it is rejected at once.
            The most urgent call gets the next permit; of equal ones, the call that came first. Services, backends,
            async functions, ``async with guard()`` and :meth:`acquire` are queued; synchronous calls are not.
        max_waiting: how many calls may be queued; further ones are rejected at once.
        slo: an `SLO`; while its budget burns (``slo.burning()``) the limit is tightened.
        tighten: factor on the target of an adaptive limit, or on a fixed limit, while the SLO burns; above 0 and at
            most 1. Afterwards the target, or the limit, returns within half a minute.
        name: for reports.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once, and no lock is held while a call runs. In the compiled build under the
    interpreter lock no lock is taken at all; run uncompiled, or without that lock, each operation takes one. With
    ``max_wait_s``, calls are queued on one event loop at a time; one of another loop gets ``RuntimeError`` meanwhile.

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
        initial: int | None = None,
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
        check_count("max_limit", max_limit, at_most=_MAX_CALLS)
        check_count("min_limit", min_limit, at_most=max_limit)
        if initial is None:
            initial = min(max(_INITIAL, min_limit), max_limit)
        check_count("initial", initial, at_least=min_limit, at_most=max_limit)
        if limit is not None:
            initial, min_limit, max_limit = check_count("limit", limit, at_most=_MAX_CALLS), 1, _MAX_CALLS
        delay_ns = -1 if queue_delay_s is None else check_duration_ns("queue_delay_s", queue_delay_s)
        reserve = check_number("reserve", reserve, "a share of at least 0 and below 1", lambda it: 0.0 <= it < 1.0)
        tighten = check_number("tighten", tighten, "a share above 0 and at most 1", lambda it: 0.0 < it <= 1.0)
        check_instance("slo", slo, BurnsAtThreshold | None, "an SLO or None")
        check_instance("name", name, str, "a string")
        clock = self._accept_clock(clock)
        wait_ns = check_duration_ns("max_wait_s", max_wait_s)
        check_count("max_waiting", max_waiting, at_most=_MAX_CALLS)
        self.name = name
        self.adaptive = limit is None
        adaptation = LimitAdaptation(float(initial), min_limit, max_limit, self.adaptive, tighten, float(delay_ns))
        self._serial = itertools.count(1)
        self._permits: dict[int, int] = {}  # permits taken by hand → when their calls began
        super().__init__(_Machine(adaptation, reserve), clock, slo)
        if wait_ns:
            self._queue = PermitQueue(self, wait_ns, max_waiting)
        call_in_child(self._forget)

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a service, a backend or a function; also as a decorator, ``@limit``.

        Args:
            inner: a service (an object with ``call``), a backend (an object with ``infer``; the limit counts its
                batches), or a sync or async function, which stays sync or async.

        Returns:
            The same kind of object. A limited service or backend has ``inner`` and ``admission``.

        Raises:
            TypeError: ``inner`` is none of these, or is a generator function: its call ends before its work begins. Or
                ``inner`` is a backend and the limit is adaptive: batches of different sizes take different times,
                which would count as congestion. Wrap the batcher instead.
        """
        if self.adaptive and is_backend(inner) and not is_service(inner):
            raise TypeError(expected("inner", "a service or a function (an adaptive limit wraps the batcher)", inner))
        if self._objective is None:
            self._objective = adapt(inner).capabilities().slo
            self.read_objective()
        service = LimitedService if self._queue is None else QueuedService
        return wrap_by_kind(self, inner, service, LimitedBackend, limit_async, limit_sync)

    __call__ = wrap

    def try_acquire(self, *, priority: int = 0, deadline_ns: int | None = None) -> int:
        """Take a permit for one call, if there is one.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Returns:
            A permit for :meth:`record` or :meth:`release` when the call is over; 0: there is no permit.

        Raises:
            InvalidInput: ``priority`` is not a whole number of 32 bits.
        """
        check_priority(priority)
        began_ns = self._machine.try_acquire(priority, NEVER_NS if deadline_ns is None else deadline_ns, self.now())
        return self._issue(began_ns) if began_ns > 0 else 0

    async def acquire(self, *, priority: int = 0, deadline_ns: int | None = None) -> int:
        """Wait for a permit for one call, at most ``max_wait_s``.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Returns:
            A permit, as from :meth:`try_acquire`.

        Raises:
            InvalidInput: ``priority`` is not a whole number of 32 bits.
            Overloaded: there was no permit in that time, or too many calls are queued.
            DeadlineExceeded: there was no permit before the deadline, or the call would miss the deadline.
            RuntimeError: calls of another event loop are queued.
        """
        check_priority(priority)
        if self._queue is None:
            return self._issue(self.enter(priority, deadline_ns, None, None))
        return self._issue(await self._queue.enter(priority, deadline_ns, None, None))

    def _issue(self, began_ns: int) -> int:
        permit = next(self._serial)
        self._permits[permit] = began_ns
        return permit

    def record(self, permit: int, *, queued_s: float | None = None) -> None:
        """Give a permit back after a call that succeeded, and learn from it.

        0 is ignored, and so is a permit that is not out, which ``statistics().stale_permits`` counts.

        Args:
            permit: permit from :meth:`try_acquire`.
            queued_s: seconds that the call was queued before its batch began; ``None``: unknown.

        Raises:
            TypeError, ValueError: ``queued_s`` is not a duration; the permit is still given back.
        """
        began_ns = self._take_back(permit)
        if not began_ns:
            return
        now_ns = self.now()
        try:
            queued_ns = UNKNOWN if queued_s is None else check_duration_ns("queued_s", queued_s)
        except (TypeError, ValueError):
            self.fail(began_ns, None, None)
            raise
        self.freed(self._machine.succeed(began_ns, queued_ns, now_ns, now_ns))

    def release(self, permit: int) -> None:
        """Give a permit back without learning: the call failed, was cancelled or never made.

        0 is ignored, and so is a permit that is not out, which ``statistics().stale_permits`` counts.
        """
        began_ns = self._take_back(permit)
        if began_ns:
            self.fail(began_ns, None, None)

    def _forget(self) -> None:
        """Take back all permits in a forked process: the calls in flight end in threads of the parent."""
        self._permits.clear()
        for _ in range(self._machine.in_flight):
            self._machine.release(self.now())
        if self._queue is not None:
            self._queue.forget()

    def _take_back(self, permit: int) -> int:
        """Return when the call of a permit began; 0: the permit is not out."""
        began_ns = self._permits.pop(permit, 0)
        if permit and not began_ns:
            self._machine.discard()
        return began_ns

    @property
    def in_flight(self) -> int:
        """Number of calls in flight."""
        return self._machine.in_flight

    @property
    def allowed(self) -> int:
        """How many calls may be in flight now."""
        return self._machine.adaptation.allowed

    @property
    def retry_after_s(self) -> float:
        """Seconds in which the calls in flight should complete, at the recent rate."""
        return self._machine.drain_ns(self.now()) / 1e9

    def statistics(self) -> LimitStatistics:
        """Return a frozen snapshot."""
        from streaminfer.resilience.limit.statistics import COUNTED, LimitStatistics  # noqa: PLC0415 - serving needs none

        machine = self._machine
        adaptation = machine.adaptation
        return LimitStatistics(
            name=self.name,
            adaptive=self.adaptive,
            limit=adaptation.limit,
            allowed=adaptation.allowed,
            in_flight=machine.in_flight,
            queued=0 if self._queue is None else len(self._queue),
            cancelled=0 if self._queue is None else self._queue.cancelled,
            target_s=adaptation.target_ns / 1e9,
            queue_delay_s=adaptation.queue_delay_ns / 1e9,
            service_s=adaptation.service_ns / 1e9,
            rate_per_s=1e9 / machine.interval_ns if machine.interval_ns else 0.0,
            retry_after_s=self.retry_after_s,
            burning=adaptation.burning,
            windows=adaptation.windows,
            **{name: getattr(machine, name) for name in COUNTED},
        )

    __reduce__ = reject_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<ConcurrencyLimit({name}{self.in_flight} of {self.allowed})>"
