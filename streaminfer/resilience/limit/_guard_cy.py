# cython: infer_types=True, binding=True
"""What stands between a call and the concurrency limit's state machine: the clock, and what a call's end teaches.

Once a call: read the clock, ask for a permit, run the call with no lock held, read the clock again, and give the permit
back with what is known. It is compiled, since it runs once a request.

What a call's end means:

* It was answered: a sample. Where a batcher stands behind, the answer's timings tell waiting from service.
* ``DeadlineExceeded`` or any other ``TimeoutError`` came out of it, or it was cancelled when the deadline that came
  with it had passed: it would have taken longer than all the time that it had.
* ``Overloaded`` came out of it: there was no place further in.
* Anything else, an error or a cancellation: nothing. A model that fails at once is not fast.

One source, compiled with the C types of ``_guard_cy.pxd`` or run as it is.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable
from functools import update_wrapper
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.instants import NEVER_NS
from streaminfer._request_cy import Timings
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import AdmissionReason
from streaminfer.resilience._targets import refuse_awaitable
from streaminfer.telemetry.objectives.slo_reader import SloReader

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.resilience.limit._state_machine_cy import LimitMachine

__all__ = ["LimitCore", "LimitGuard", "LimitedFunction"]

_EARLY_NS = round(time.get_clock_info("monotonic").resolution * 1e9)  # loops fire early by so much

_TOO_LATE = frozenset({AdmissionReason.INFEASIBLE, AdmissionReason.DEADLINE_EXCEEDED})

# C variables in the compiled module, not visible from Python
_NEVER = NEVER_NS
_FULL = 0
_LATE = -1
_UNKNOWN = -1
_FRESH = 0
_ENTERED = 1
_OVER = 2
_WAITS = 3


class LimitCore:
    """A state machine with a clock, and with rules for what is learned from a call.

    Args:
        machine: the state.
        clock: returns monotonic nanoseconds; ``None``: a C read of the monotonic clock.
        slo: has ``burning()`` and ``threshold_s``; or ``None``.

    Attributes:
        name: for errors; the subclass sets it.
    """

    __slots__ = ("_budget", "_clock", "_machine", "_objective", "_queue", "_slo", "name")

    name: str

    def __init__(self, machine: LimitMachine, clock: Clock | None, slo: Any) -> None:
        self._machine = machine
        self._clock = clock
        self._slo = slo
        self._budget = SloReader(slo, "a concurrency limit")
        self._objective: Any = None
        self._queue: Any = None
        self._aim()

    def enter(self, priority: int, deadline_ns: int | None, request: Any, admission: Any) -> int:
        """A permit, for a wrapper.

        Args:
            priority: of the call.
            deadline_ns: of the call, or ``None``.
            request: the `Request`.
            admission: asks what stands behind whether it can be on time, where that is in doubt; or ``None``.

        Raises:
            Overloaded: there is no place.
            DeadlineExceeded: it would be late.
        """
        now_ns = self._now()
        if deadline_ns is None:
            permit = self._machine.try_acquire(priority, _NEVER, now_ns)
        else:
            if admission is not None and self._machine.is_tight(deadline_ns, now_ns):
                self._ask(admission, request, deadline_ns, now_ns)
            permit = self._machine.try_acquire(priority, deadline_ns, now_ns)
        if permit <= 0:
            self._refuse(permit, deadline_ns, now_ns)
        return permit

    def leave(self, permit: int, response: Any, waits: bool) -> None:
        """A call that was answered.

        Args:
            permit: what :meth:`enter` gave.
            response: what it was answered with.
            waits: whether the response's timings tell waiting from service.
        """
        now_ns = self._now()
        queued_ns = _UNKNOWN
        batch_ns = 0
        if waits:
            timings = getattr(response, "timings", None)
            if type(timings) is Timings and timings.started_ns:
                batch_ns = timings.started_ns
                queued_ns = batch_ns - timings.enqueued_ns
                if queued_ns < 0:
                    queued_ns = 0
        if self._machine.answer(permit, queued_ns, batch_ns, now_ns):
            self._aim()
        if self._queue is not None:
            self._queue.freed()

    def fail(self, permit: int, error: BaseException | None, deadline_ns: int | None) -> None:
        """A call that was not answered; ``None``: nothing is known."""
        now_ns = self._now()
        ended = False
        if isinstance(error, Overloaded):
            ended = self._machine.overload(permit, now_ns)
        elif isinstance(error, TimeoutError) or (
            isinstance(error, CancelledError) and deadline_ns is not None and now_ns + _EARLY_NS >= deadline_ns
        ):
            allowed_ns = (now_ns if deadline_ns is None or deadline_ns == _NEVER else deadline_ns) - permit
            ended = self._machine.time_out(permit, allowed_ns, now_ns)
        else:
            self._machine.release(now_ns)
        if ended:
            self._aim()
        if self._queue is not None:
            self._queue.freed()

    def guard(self, *, priority: int = 0, deadline_ns: int | None = None) -> LimitGuard:
        """A context manager for one call, sync or async; a fresh one each time.

        Args:
            priority: a lower number is more urgent.
            deadline_ns: monotonic instant after which the call is worthless.

        Raises:
            Overloaded: on entry, when there is no place.
            DeadlineExceeded: on entry, when it would be late.
            RuntimeError: on entry, when it was entered before.
        """
        return LimitGuard(self, priority, deadline_ns)

    def aim(self) -> None:
        """Looks at the objective and at what is left of its budget, as after each round."""
        self._aim()

    def now(self) -> int:
        """The present instant on its clock, monotonic nanoseconds."""
        return self._now()

    def _now(self) -> int:
        if self._clock is None:
            return time.monotonic_ns()
        return self._clock()

    def _aim(self) -> None:
        """After each round: the objective, which may change, and whether its budget burns."""
        objective_ns = 0.0
        burning = False
        if self._slo is not None:
            objective_ns = self._budget.threshold_ns()
            burning = self._budget.burning(self._machine.answered)
        elif self._objective is not None:
            objective_ns = self._objective() or 0.0
        self._machine.aim(objective_ns, burning)

    def _ask(self, admission: Callable[..., Any], request: Any, deadline_ns: int, now_ns: int) -> None:
        answer = admission(request, now_ns)
        if not answer.ok and answer.reason in _TOO_LATE:
            self._machine.refuse_late()
            raise DeadlineExceeded(
                f"{self.called()} refused a request with {(deadline_ns - now_ns) / 1e9:.6f} s left: "
                f"what it wraps rejects it: {answer.reason}"
            )

    def _refuse(self, verdict: int, deadline_ns: int | None, now_ns: int) -> None:
        if verdict == _LATE and deadline_ns is not None:
            raise DeadlineExceeded(
                f"{self.called()} refused a request with {(deadline_ns - now_ns) / 1e9:.6f} s left: "
                f"no call took so little lately"
            )
        retry_after_s = self._machine.drain_ns(now_ns) / 1e9
        raise Overloaded(
            f"{self.called()} is reached: {self._machine.in_flight} calls are in flight, of {self._machine.allowed} "
            f"that it allows; retry after {retry_after_s:.3f} s",
            retry_after_s=retry_after_s,
        )

    def called(self) -> str:
        """What errors call it."""
        return f"concurrency limit {self.name!r}" if self.name else "the concurrency limit"


class LimitGuard:
    """One call's way through the concurrency limit; made by ``ConcurrencyLimit.guard``."""

    __slots__ = ("_core", "_deadline_ns", "_learns", "_permit", "_phase", "_priority")

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)

    async def __aenter__(self) -> Self:
        queue = self._core._queue
        if queue is None:
            self._enter()
        else:
            self._check_fresh()
            self._phase = _WAITS
            try:
                self._permit = await queue.enter(self._priority, self._deadline_ns, None, None)
            except BaseException:
                self._phase = _FRESH
                raise
            self._phase = _ENTERED
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)

    def ignore(self) -> None:
        """Nothing is to be learned from how long this call took.

        Raises:
            RuntimeError: outside the block.
        """
        if self._phase != _ENTERED:
            raise RuntimeError("this guard is not inside its block")
        self._learns = False

    def _check_fresh(self) -> None:
        if self._phase != _FRESH:
            raise RuntimeError("a guard is for one call: ask the limit for another with guard()")

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
        return f"<LimitGuard, {('fresh', 'entered', 'over', 'waits')[self._phase]}>"


class LimitedFunction:
    """A function behind a concurrency limit; it is called, bound and documented like the function itself.

    Args:
        core: the limit.
        function: what is called.
    """

    __slots__ = ("__dict__", "__weakref__", "_core", "_function")

    def __init__(self, core: LimitCore, function: Callable[..., Any]) -> None:
        self._core = core
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        permit = self._core.enter(0, None, None, None)
        try:
            result = self._function(*args, **kwargs)
        except BaseException as error:
            self._core.fail(permit, error, None)
            raise
        if hasattr(type(result), "__await__"):
            self._core.fail(permit, None, None)
            refuse_awaitable(self._function, result)
        self._core.leave(permit, None, False)
        return result

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[no-any-return, attr-defined] # found by its name, as functions are

    def __repr__(self) -> str:
        return f"<limited {self._function!r}>"
