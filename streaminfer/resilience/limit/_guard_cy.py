# cython: infer_types=True, binding=True
"""Calls under a concurrency limit: when they begin and end, and what the limit learns from their outcomes.

Per call: read the clock, take a permit, run the call with no lock held, read the clock again, and give the permit back
with the outcome:

* A response is a sample. If it comes through a batcher, its timings separate queueing from service.
* ``DeadlineExceeded`` or another ``TimeoutError``, or a cancellation after the call's deadline: the call would have
  taken longer than all the time that it had.
* ``Overloaded``: an inner layer rejected the call.
* The limit learns nothing from any other error or cancellation: a model that fails at once is not fast.

One source, compiled with the C types of ``_guard_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.units import NEVER_NS
from streaminfer._request_cy import Response
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import AdmissionReason
from streaminfer.telemetry.objectives.slo_reader import SloReader

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.resilience.limit._state_machine_cy import LimitMachine

__all__ = ["LimitCore", "LimitGuard"]

_EARLY_NS = round(time.get_clock_info("monotonic").resolution * 1e9)  # event loops fire early by up to this

_TOO_LATE = frozenset({AdmissionReason.INFEASIBLE, AdmissionReason.DEADLINE_EXCEEDED})

# C variables in the compiled module, not visible from Python
_INFEASIBLE = -1
_UNKNOWN = -1
_FRESH = 0
_ENTERED = 1
_OVER = 2
_QUEUED = 3


class LimitCore:
    """State machine with a clock, and with the rules for learning from calls.

    This is a compiled base class of ``ConcurrencyLimit``, because a field would cost each call one more Python
    attribute look-up and method call.

    Args:
        machine: the state machine.
        clock: returns monotonic nanoseconds; ``None``: a C read of the monotonic clock.
        slo: an object with ``burning()`` and ``threshold_s``; or ``None``.

    Attributes:
        name: for errors; the subclass sets it.
    """

    name: str

    def __init__(self, machine: LimitMachine, clock: Clock | None, slo: Any) -> None:
        self._machine = machine
        self._clock = clock
        self._slo = slo
        self._budget = SloReader(slo, "a concurrency limit")
        self._objective: Any = None
        self._queue: Any = None
        self.read_objective()

    def enter(self, priority: int, deadline_ns: int | None, request: Any, admission: Any) -> int:
        """Return a permit, for a wrapper.

        Args:
            priority: priority of the call.
            deadline_ns: deadline of the call, or ``None``.
            request: the `Request`.
            admission: admission of the inner object, called if the request may be late; or ``None``.

        Raises:
            Overloaded: the limit is reached.
            DeadlineExceeded: the call would miss its deadline.
        """
        now_ns = self._now()
        if deadline_ns is None:
            permit = self._machine.try_acquire(priority, NEVER_NS, now_ns)
        else:
            if admission is not None and self._machine.is_tight(deadline_ns, now_ns):
                self._check_inner(admission, request, deadline_ns, now_ns)
            permit = self._machine.try_acquire(priority, deadline_ns, now_ns)
        if permit <= 0:
            self._reject(permit, deadline_ns, now_ns)
        return permit

    def leave(self, permit: int, response: Any, timed: bool) -> None:
        """End a call with a response.

        Args:
            permit: permit from :meth:`enter`.
            response: response of the call.
            timed: whether the response's timings separate queueing from service.
        """
        now_ns = self._now()
        queued_ns = _UNKNOWN
        batch_ns = 0
        if timed and isinstance(response, Response):
            own: Response = response
            timings = own.timings
            if timings is not None and timings.started_ns:
                batch_ns = timings.started_ns
                queued_ns = max(batch_ns - timings.enqueued_ns, 0)
        self._freed(self._machine.succeed(permit, queued_ns, batch_ns, now_ns))

    def fail(self, permit: int, error: BaseException | None, deadline_ns: int | None) -> None:
        """End a call without response; if ``error`` is ``None``, learn nothing."""
        now_ns = self._now()
        ended = False
        if isinstance(error, Overloaded):
            ended = self._machine.reject_inside(permit, now_ns)
        elif isinstance(error, TimeoutError) or (
            isinstance(error, CancelledError) and deadline_ns is not None and now_ns + _EARLY_NS >= deadline_ns
        ):
            allowed_ns = (now_ns if deadline_ns is None or deadline_ns == NEVER_NS else deadline_ns) - permit
            ended = self._machine.exceed_deadline(permit, allowed_ns, now_ns)
        else:
            self._machine.release(now_ns)
        self._freed(ended)

    def guard(self, *, priority: int = 0, deadline_ns: int | None = None) -> LimitGuard:
        """Return a new context manager for one call, sync or async.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Raises:
            Overloaded: on entry, if the limit is reached.
            DeadlineExceeded: on entry, if the call would miss its deadline.
            RuntimeError: on entry, if the guard was entered before.
        """
        return LimitGuard(self, priority, deadline_ns)

    def freed(self, ended: bool) -> None:
        """Give a permit that came back to a queued call; if a window has ended, read the objective first."""
        self._freed(ended)

    def now(self) -> int:
        """Return the present instant on its clock, monotonic nanoseconds."""
        return self._now()

    def _now(self) -> int:
        if self._clock is None:
            return time.monotonic_ns()
        return self._clock()

    def _freed(self, ended: bool) -> None:
        if ended:
            self.read_objective()
        if self._queue is not None:
            self._queue.freed()

    def read_objective(self) -> None:
        """Read the objective, which may change, and whether its budget burns, as happens after each window."""
        objective_ns = 0.0
        burning = False
        if self._slo is not None:
            objective_ns = self._budget.threshold_ns()
            burning = self._budget.burning(self._machine.succeeded)
        elif self._objective is not None:
            objective_ns = self._objective.slo_ns or 0.0
        self._machine.set_objective(objective_ns, burning)

    def _check_inner(self, admission: Callable[..., Any], request: Any, deadline_ns: int, now_ns: int) -> None:
        verdict = admission(request, now_ns)
        if not verdict.ok and verdict.reason in _TOO_LATE:
            self._machine.reject_infeasible()
            raise DeadlineExceeded(
                f"{self.called()} rejected a request with {(deadline_ns - now_ns) / 1e9:.6f} s left: "
                f"its service rejects it: {verdict.reason}"
            )

    def _reject(self, verdict: int, deadline_ns: int | None, now_ns: int) -> None:
        if verdict == _INFEASIBLE and deadline_ns is not None:
            raise DeadlineExceeded(
                f"{self.called()} rejected a request with {(deadline_ns - now_ns) / 1e9:.6f} s left: "
                f"no recent call took so little"
            )
        retry_after_s: float | None = self._machine.drain_ns(now_ns) / 1e9 or None
        allowed = self._machine.adaptation.allowed
        retry = "" if retry_after_s is None else f"; retry after {retry_after_s:.3f} s"
        raise Overloaded(
            f"{self.called()} is reached: {self._machine.in_flight} calls are in flight, of {allowed} that it allows"
            f"{retry}",
            retry_after_s=retry_after_s,
        )

    def called(self) -> str:
        """Return its name in errors."""
        return f"concurrency limit {self.name!r}" if self.name else "the concurrency limit"


class LimitGuard:
    """Context manager of one call; made by ``ConcurrencyLimit.guard``."""

    def __init__(self, core: LimitCore, priority: int, deadline_ns: int | None) -> None:
        self._core = core
        self._priority = priority
        self._deadline_ns = deadline_ns
        self._permit = 0
        self._learns = True
        self._phase = _FRESH

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._exit(error)

    async def __aenter__(self) -> Self:
        queue = self._core._queue
        if queue is None:
            self._enter()
        else:
            self._check_fresh()
            self._phase = _QUEUED
            try:
                self._permit = await queue.enter(self._priority, self._deadline_ns, None, None)
            except BaseException:
                self._phase = _FRESH
                raise
            self._phase = _ENTERED
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._exit(error)

    def ignore(self) -> None:
        """Learn nothing from this call.

        Raises:
            RuntimeError: outside the block.
        """
        if self._phase != _ENTERED:
            raise RuntimeError("this guard is not inside its block")
        self._learns = False

    def _check_fresh(self) -> None:
        if self._phase != _FRESH:
            raise RuntimeError("a guard is for one call; make another one with guard()")

    def _enter(self) -> None:
        self._check_fresh()
        self._permit = self._core.enter(self._priority, self._deadline_ns, None, None)
        self._phase = _ENTERED

    def _exit(self, error: BaseException | None) -> None:
        if self._phase != _ENTERED:
            raise RuntimeError("this guard is not inside its block")
        self._phase = _OVER
        if error is None and self._learns:
            self._core.leave(self._permit, None, False)
        else:
            self._core.fail(self._permit, error, self._deadline_ns)

    def __repr__(self) -> str:
        return f"<LimitGuard, {('fresh', 'entered', 'over', 'queued')[self._phase]}>"
