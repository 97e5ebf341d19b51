# cython: infer_types=True, binding=True
"""What stands between a call and the circuit breaker's state machine: the clock, and what an outcome means.

Once a call: read the clock, ask for a permit, run the call with no lock held, read the clock again, and give the permit
back with the outcome. This is compiled, since a Python closure around compiled state costs more than both.

What a call's end means:

* It returned: a success, unless a predicate says of the result that it is a failure, or no outcome.
* It raised an ``Exception``: a failure, unless that is one to be ignored.
* It was cut off by its deadline (``DeadlineExceeded`` from inside, or cancelled when the deadline that came with it had
  passed): ``BreakerMachine.cut_off`` decides by how long it had run. A call whose deadline had passed before it began
  is none.
* It was cancelled otherwise, closed as a generator, or interrupted: no outcome, the permit is free again.

One source, compiled with the C types of ``_guard_cy.pxd`` or run as it is.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.validation import check_duration
from streaminfer.errors import CircuitOpen, DeadlineExceeded
from streaminfer.resilience._targets import refuse_awaitable

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.resilience.breaker._state_machine_cy import BreakerMachine

__all__ = ["BreakerCore", "Guard", "GuardedFunction"]

monotonic_ns = time.monotonic_ns

_LONGEST_S = 1e9
_EARLY_NS = round(time.get_clock_info("monotonic").resolution * 1e9)  # loops fire early by so much

# C variables in the compiled module, not visible from Python
_FRESH = 0
_ENTERED = 1
_OVER = 2


class BreakerCore:
    """A state machine with a clock, and with rules for what is an outcome.

    Args:
        machine: the state.
        clock: returns monotonic nanoseconds; ``None``: a C read of the monotonic clock.
        ignored: classes of exceptions that are no outcome.
        ignores: says of another exception whether it is none; or ``None``.
        failure_result: says of a result whether it is a failure; or ``None``.
        ignore_result: says of a result whether it is no outcome; or ``None``.
        deliver: called without arguments after an operation that left events pending.

    Attributes:
        name: for errors; the subclass sets it.
    """

    __slots__ = (
        "_clock",
        "_deliver",
        "_failure_result",
        "_ignore_result",
        "_ignored",
        "_ignores",
        "_machine",
        "_ramp",
        "name",
    )

    name: str

    def __init__(
        self,
        machine: BreakerMachine,
        clock: Clock | None,
        ignored: tuple[type[BaseException], ...],
        ignores: Callable[[BaseException], Any] | None,
        failure_result: Callable[[Any], Any] | None,
        ignore_result: Callable[[Any], Any] | None,
        deliver: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._ignored = ignored
        self._ignores = ignores
        self._failure_result = failure_result
        self._ignore_result = ignore_result
        self._deliver = deliver
        self._ramp: Any = None

    def try_acquire(self) -> int:
        """Asks for permission to make one call.

        Returns:
            A permit, to be given to :meth:`record` or :meth:`release` when the call is over; 0 when it is refused. It
            carries the generation of the state: once that has changed, it counts for nothing.
        """
        now_ns = self._now()
        if self._ramp is not None and self._ramp.active and not self._ramp.admits(now_ns):
            return 0
        permit = self._machine.try_acquire(now_ns)
        if self._machine.pending:
            self._deliver()
        return permit

    def record(self, ok: bool, duration_s: float, permit: int = 0) -> None:
        """Tells the outcome of a call; a stale permit is ignored.

        Args:
            ok: whether it succeeded.
            duration_s: how long it took, seconds ≥ 0.
            permit: what :meth:`try_acquire` gave; 0: a call made without one counts as of now, except while open.

        Raises:
            ValueError: a duration that is negative, infinite or NaN.
            TypeError: not a number.
        """
        self._machine.record(bool(ok), _nanoseconds(duration_s), permit, self._now())
        if self._machine.pending:
            self._deliver()

    def release(self, permit: int) -> None:
        """Gives back a permit whose call has no outcome: cancelled, or never made; a stale one and 0 are ignored."""
        self._machine.release(permit, self._now())
        if self._machine.pending:
            self._deliver()

    def permits(self) -> bool:
        """Whether :meth:`try_acquire` would give a permit now; takes none."""
        return self.permits_at(self._now())

    def permits_at(self, now_ns: int) -> bool:
        """As :meth:`permits`, at an instant that is known already."""
        if self._ramp is not None and self._ramp.active and not self._ramp.would_admit(now_ns):
            return False
        return self._machine.permits(now_ns)

    def guard(self) -> Guard:
        """A context manager for one call, sync or async; a fresh one each time.

        An exception that leaves the block is the call's outcome. The ``with`` statement gives the guard, whose
        ``fail()`` and ``ignore()`` say that a block that raises nothing did not succeed.

        Raises:
            CircuitOpen: on entry, when the call may not be made.
            RuntimeError: on entry, when it was entered before.
        """
        return _guard_of(self)

    def enter(self) -> Guard:
        """A guard that was entered, for a wrapper, which calls ``returned``, ``raised`` or ``judged`` at the end.

        Raises:
            CircuitOpen: the call may not be made.
        """
        guard = _guard_of(self)
        guard._enter()
        return guard

    def begin(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Guard, Any]:
        """A guard that was entered, and what an async function returned for these arguments, to be awaited.

        The arguments are passed on as they came; the closure that has them would copy them to pass them on.

        Raises:
            CircuitOpen: the call may not be made.
        """
        guard = _guard_of(self)
        guard._enter()
        try:
            awaitable = function(*args, **kwargs) if kwargs else function(*args)
        except BaseException as error:
            guard.raised(error)
            raise
        return guard, awaitable

    def retry_after_ns(self, now_ns: int) -> int:
        """Nanoseconds until asking again makes sense; 0 while all calls pass."""
        left_ns: int = self._machine.retry_after_ns(now_ns)
        return left_ns if left_ns or self._ramp is None else self._ramp.left_ns(now_ns)

    def counts(self, error: BaseException) -> bool:
        """Whether an exception is an outcome: an ``Exception`` that is not to be ignored."""
        if not isinstance(error, Exception) or isinstance(error, self._ignored):
            return False
        return self._ignores is None or not self._ignores(error)

    def now(self) -> int:
        """The present instant on its clock, monotonic nanoseconds."""
        return self._now()

    def _now(self) -> int:
        if self._clock is None:
            return monotonic_ns()
        return self._clock()

    def _begin(self, now_ns: int) -> int:
        """A permit, or ``CircuitOpen``."""
        if self._ramp is not None and self._ramp.active and not self._ramp.admits(now_ns):
            retry_after_s = self._ramp.left_ns(now_ns) / 1e9
            raise CircuitOpen(
                f"{self._called()} has just closed and lets {self._ramp.share(now_ns):.0%} of the calls pass; "
                f"all pass in {retry_after_s:.3f} s",
                retry_after_s=retry_after_s,
            )
        permit = self._machine.try_acquire(now_ns)
        if self._machine.pending:
            try:
                self._deliver()
            except BaseException:  # an interrupt that hit a listener: the call will not be made
                self._machine.release(permit, now_ns)
                raise
        if permit == 0:
            retry_after_s = self._machine.retry_after_ns(now_ns) / 1e9
            raise CircuitOpen(
                f"{self._called()} is open; retry after {retry_after_s:.3f} s", retry_after_s=retry_after_s
            )
        return permit

    def _called(self) -> str:
        return f"circuit breaker {self.name!r}" if self.name else "the circuit breaker"

    def _end(self, permit: int, started_ns: int, outcome: Any) -> None:
        """A call whose outcome is known: success, failure, or none."""
        ended_ns = self._now()
        if outcome is None:
            self._machine.release(permit, ended_ns)
        else:
            self._machine.record(outcome is True, max(ended_ns - started_ns, 0), permit, ended_ns)
        if self._machine.pending:
            self._deliver()

    def _return(self, permit: int, started_ns: int, result: Any) -> None:
        """A call that returned."""
        if self._ignore_result is None and self._failure_result is None:
            self._end(permit, started_ns, True)
        else:
            outcome = None
            try:
                outcome = self._outcome_of(result)
            finally:  # a predicate that fails says nothing about the call
                self._end(permit, started_ns, outcome)

    def outcome_of(self, result: Any) -> bool | None:
        """Whether a result is a success, a failure, or no outcome (``None``)."""
        return self._outcome_of(result)

    def _outcome_of(self, result: Any) -> bool | None:
        if self._ignore_result is not None and self._ignore_result(result):
            return None
        return not (self._failure_result is not None and self._failure_result(result))

    def _raise(self, permit: int, started_ns: int, error: BaseException, deadline_ns: Any) -> None:
        """A call that ended with an exception."""
        outcome = None
        cut_off = False
        try:
            if isinstance(error, CancelledError):
                cut_off = deadline_ns is not None and self._now() + _EARLY_NS >= deadline_ns
            elif self.counts(error):
                outcome = False
                cut_off = isinstance(error, DeadlineExceeded)
        finally:  # a predicate that fails says nothing about the call
            if not cut_off:
                self._end(permit, started_ns, outcome)
        if cut_off:
            self._cut_off(permit, started_ns, deadline_ns)

    def _cut_off(self, permit: int, started_ns: int, deadline_ns: Any) -> None:
        ended_ns = self._now()
        if deadline_ns is not None and deadline_ns <= started_ns:
            self._machine.release(permit, ended_ns)  # it had no time at all
        else:
            self._machine.cut_off(max(ended_ns - started_ns, 0), permit, ended_ns)
        if self._machine.pending:
            self._deliver()


def _nanoseconds(duration_s: Any) -> int:
    if type(duration_s) is float:
        seconds = duration_s
        if 0.0 <= seconds <= _LONGEST_S:
            return int(seconds * 1e9 + 0.5)
    return round(min(check_duration("duration_s", duration_s), _LONGEST_S) * 1e9)


class Guard:
    """One call's way through the circuit breaker; made by ``CircuitBreaker.guard``."""

    __slots__ = ("_core", "_outcome", "_permit", "_phase", "_started_ns")

    _core: BreakerCore
    _outcome: bool | None
    _permit: int
    _started_ns: int
    _phase: int

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)

    def __aenter__(self) -> Coroutine[Any, Any, Guard]:
        self._enter()
        return _given(self)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> _Done:
        self._exit(error)
        return _NOTHING

    def fail(self) -> None:
        """The call failed, though nothing is raised.

        Raises:
            RuntimeError: outside the block.
        """
        self._inside()
        self._outcome = False

    def ignore(self) -> None:
        """The call has no outcome: its permit goes back unused.

        Raises:
            RuntimeError: outside the block.
        """
        self._inside()
        self._outcome = None

    def returned(self, result: Any) -> None:
        """For a wrapper: the call returned this."""
        self._leave()
        self._core._return(self._permit, self._started_ns, result)

    def raised(self, error: BaseException, deadline_ns: int | None = None) -> None:
        """For a wrapper: the call raised this.

        Args:
            error: what it raised.
            deadline_ns: the deadline that came with the call.
        """
        self._leave()
        self._core._raise(self._permit, self._started_ns, error, deadline_ns)

    def judged(self, outcome: bool | None) -> None:
        """For a wrapper: the call succeeded, failed, or has no outcome (``None``)."""
        self._leave()
        self._core._end(self._permit, self._started_ns, outcome)

    def _enter(self) -> None:
        if self._phase != _FRESH:
            raise RuntimeError("a guard is for one call: ask the breaker for another with guard()")
        self._started_ns = self._core._now()
        self._permit = self._core._begin(self._started_ns)
        self._phase = _ENTERED

    def _exit(self, error: BaseException | None) -> None:
        self._leave()
        if error is None or self._outcome is not True:
            self._core._end(self._permit, self._started_ns, self._outcome)
        else:
            self._core._raise(self._permit, self._started_ns, error, None)

    def _leave(self) -> None:
        self._inside()
        self._phase = _OVER

    def _inside(self) -> None:
        if self._phase != _ENTERED:
            raise RuntimeError("this guard is not inside its block")

    def __repr__(self) -> str:
        return f"<Guard, {('fresh', 'entered', 'over')[self._phase]}>"


def _guard_of(core: BreakerCore) -> Guard:
    guard = Guard.__new__(Guard)  # without a call of the type, which costs as much as all the rest
    guard._core = core
    guard._outcome = True
    guard._permit = 0
    guard._started_ns = 0
    guard._phase = _FRESH
    return guard


async def _given(guard: Guard) -> Guard:
    """A compiled coroutine, which hands its result over without the exception that an iterator needs for it."""
    return guard


class _Done:
    """An awaitable that is done already, with nothing to give."""

    __slots__ = ()

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> _Done:
        return self

    def __next__(self) -> None:
        raise StopIteration


_NOTHING = _Done()


class GuardedFunction:
    """A function behind a circuit breaker; it is called, bound and documented like the function itself.

    Args:
        core: the breaker.
        function: what is called.
    """

    __slots__ = ("__dict__", "__weakref__", "_core", "_function")

    def __init__(self, core: BreakerCore, function: Callable[..., Any]) -> None:
        self._core = core
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        core = self._core
        started_ns = core._now()
        permit = core._begin(started_ns)
        try:
            result = self._function(*args, **kwargs) if kwargs else self._function(*args)
        except BaseException as error:
            core._raise(permit, started_ns, error, None)
            raise
        if hasattr(type(result), "__await__"):
            core._end(permit, started_ns, None)
            refuse_awaitable(self._function, result)
        core._return(permit, started_ns, result)
        return result

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[no-any-return, attr-defined] # found by its name, as functions are

    def __repr__(self) -> str:
        return f"<guarded {self._function!r}>"
