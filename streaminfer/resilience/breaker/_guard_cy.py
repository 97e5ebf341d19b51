# cython: infer_types=True, binding=True
"""Calls under a circuit breaker: when they begin and end, and what their outcomes mean.

Per call: read the clock, take a permit, run the call with no lock held, read the clock again, and give the permit back
with the outcome. This is compiled, because a Python closure around compiled state costs more than both. The outcome:

* A call that returns is a success, unless a predicate declares the result a failure, or no outcome.
* A call that raises an ``Exception`` is a failure, unless the exception is ignored.
* For a call that its deadline ended (``DeadlineExceeded`` from inside, or a cancellation after the call's deadline)
  ``BreakerMachine.cut_off`` decides by how long the call had run. A deadline that had passed before the call began
  counts neither way.
* A call that is otherwise cancelled, closed as a generator, or interrupted has no outcome: its permit is released.

One source, compiled with the C types of ``_guard_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.validation import check_duration
from streaminfer.errors import CircuitOpen, DeadlineExceeded

if TYPE_CHECKING:
    from streaminfer.protocols import Clock
    from streaminfer.resilience.breaker._state_machine_cy import BreakerMachine

__all__ = ["BreakerCore", "Guard"]

monotonic_ns = time.monotonic_ns

_LONGEST_S = 1e9
_EARLY_NS = round(time.get_clock_info("monotonic").resolution * 1e9)  # event loops fire early by up to this

# C variables in the compiled module, not visible from Python
_FRESH = 0
_ENTERED = 1
_OVER = 2


class BreakerCore:
    """State machine with a clock, and with the rules for outcomes.

    This is a compiled base class of ``CircuitBreaker``, because a field would cost each call one more Python attribute
    look-up and method call.

    Args:
        machine: the state machine.
        clock: returns monotonic nanoseconds; ``None``: a C read of the monotonic clock.
        ignored: classes of exceptions that do not count as outcomes.
        ignores: returns whether another exception does not count as an outcome; or ``None``.
        failure_result: returns whether a result is a failure; or ``None``.
        ignore_result: returns whether a result does not count as an outcome; or ``None``.
        deliver: called without arguments after an operation that left events pending.

    Attributes:
        name: for errors; the subclass sets it.
    """

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

    def try_acquire(self) -> int:
        """Take a permit for one call.

        Returns:
            A permit for :meth:`record` or :meth:`release` when the call is over; 0: the call is rejected. The permit
            carries the generation of the state and is stale after a change of the state.
        """
        now_ns = self._now()
        permit = self._machine.try_acquire(now_ns)
        if self._machine.transitions.pending:
            self._deliver()
        return permit

    def record(self, ok: bool, duration_s: float, permit: int = 0) -> None:
        """Record the outcome of a call; a stale permit is ignored.

        Args:
            ok: whether the call succeeded.
            duration_s: how long it took, seconds ≥ 0.
            permit: permit from :meth:`try_acquire`; 0: a call without a permit, which counts now, except while open.

        Raises:
            ValueError: ``duration_s`` is negative, infinite or NaN.
            TypeError: ``duration_s`` is not a number.
        """
        self._machine.record(bool(ok), _nanoseconds(duration_s), permit, self._now())
        if self._machine.transitions.pending:
            self._deliver()

    def release(self, permit: int) -> None:
        """Give back the permit of a call that was cancelled or never made; a stale permit and 0 are ignored."""
        self._machine.release(permit, self._now())
        if self._machine.transitions.pending:
            self._deliver()

    def permits(self) -> bool:
        """Return whether :meth:`try_acquire` would give a permit now; takes none."""
        return self._machine.permits(self._now())

    def guard(self) -> Guard:
        """Return a new context manager for one call, sync or async.

        An exception that leaves the block is the call's outcome. The ``with`` statement returns the guard; call its
        ``fail()`` or ``ignore()`` if a block that raises nothing did not succeed.

        Raises:
            CircuitOpen: on entry, if the circuit does not let the call pass.
            RuntimeError: on entry, if the guard was entered before.
        """
        return _guard_of(self)

    def enter(self) -> Guard:
        """Return an entered guard for a wrapper, which ends it with ``returned``, ``raised`` or ``judged``.

        Raises:
            CircuitOpen: the circuit does not let the call pass.
        """
        guard = _guard_of(self)
        guard._enter()
        return guard

    def retry_after_ns(self, now_ns: int) -> int:
        """Return the nanoseconds until a call may pass; 0 while all calls pass."""
        return self._machine.retry_after_ns(now_ns)

    def counts(self, error: BaseException) -> bool:
        """Return whether an exception is an outcome: an ``Exception`` that is not ignored."""
        if not isinstance(error, Exception) or isinstance(error, self._ignored):
            return False
        return self._ignores is None or not self._ignores(error)

    def now(self) -> int:
        """Return the present instant on its clock, monotonic nanoseconds."""
        return self._now()

    def _now(self) -> int:
        if self._clock is None:
            return monotonic_ns()
        return self._clock()

    def _begin(self, now_ns: int) -> int:
        """Return a permit, or raise ``CircuitOpen``."""
        permit = self._machine.try_acquire(now_ns)
        if self._machine.transitions.pending:
            try:
                self._deliver()
            except BaseException:  # an interrupt reached a listener: the call is not made
                self._machine.release(permit, now_ns)
                raise
        if permit == 0:
            retry_after_s = self._machine.retry_after_ns(now_ns) / 1e9
            share = self._machine.share(now_ns)
            if share < 1.0:
                fact = f"has just closed and lets {share:.0%} of the calls pass; all pass in {retry_after_s:.3f} s"
            else:
                fact = f"is open; retry after {retry_after_s:.3f} s"
            raise CircuitOpen(f"{self._called()} {fact}", retry_after_s=retry_after_s)
        return permit

    def _called(self) -> str:
        return f"circuit breaker {self.name!r}" if self.name else "the circuit breaker"

    def _end(self, permit: int, started_ns: int, outcome: Any, cut_off: bool = False) -> None:
        """End a call with a known outcome: success, failure, or none; or one that its deadline ended."""
        ended_ns = self._now()
        if outcome is None:
            self._machine.release(permit, ended_ns)
        elif cut_off:
            self._machine.cut_off(max(ended_ns - started_ns, 0), permit, ended_ns)
        else:
            self._machine.record(outcome is True, max(ended_ns - started_ns, 0), permit, ended_ns)
        if self._machine.transitions.pending:
            self._deliver()

    def _return(self, permit: int, started_ns: int, result: Any) -> None:
        """End a call that returned."""
        if self._ignore_result is None and self._failure_result is None:
            self._end(permit, started_ns, True)
        else:
            outcome = None
            try:
                outcome = self.outcome_of(result)
            finally:  # a predicate that fails says nothing about the call
                self._end(permit, started_ns, outcome)

    def outcome_of(self, result: Any) -> bool | None:
        """Return whether a result is a success, a failure, or no outcome (``None``)."""
        if self._ignore_result is not None and self._ignore_result(result):
            return None
        return not (self._failure_result is not None and self._failure_result(result))

    def _raise(self, permit: int, started_ns: int, error: BaseException, deadline_ns: Any) -> None:
        """End a call that raised an exception."""
        outcome = None
        cut_off = False
        try:
            if isinstance(error, CancelledError):
                cut_off = deadline_ns is not None and self._now() + _EARLY_NS >= deadline_ns
            elif self.counts(error):
                outcome = False
                cut_off = isinstance(error, DeadlineExceeded)
            if cut_off:
                had_time = deadline_ns is None or deadline_ns > started_ns
                outcome = False if had_time else None
        finally:  # a predicate that fails says nothing about the call
            self._end(permit, started_ns, outcome, cut_off)


def _nanoseconds(duration_s: Any) -> int:
    if type(duration_s) is float:
        seconds = duration_s
        if 0.0 <= seconds <= _LONGEST_S:
            return int(seconds * 1e9 + 0.5)
    return round(min(check_duration("duration_s", duration_s), _LONGEST_S) * 1e9)


class Guard:
    """Context manager of one call; made by ``CircuitBreaker.guard``."""

    _core: BreakerCore
    _outcome: bool | None
    _permit: int
    _started_ns: int
    _phase: int

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._exit(error)

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._exit(error)

    def fail(self) -> None:
        """Record a failure, although the block raises nothing.

        Raises:
            RuntimeError: outside the block.
        """
        self._inside()
        self._outcome = False

    def ignore(self) -> None:
        """Record no outcome: the permit is released unused.

        Raises:
            RuntimeError: outside the block.
        """
        self._inside()
        self._outcome = None

    def returned(self, result: Any) -> None:
        """End the call of a wrapper with a result."""
        self._leave()
        self._core._return(self._permit, self._started_ns, result)

    def raised(self, error: BaseException, deadline_ns: int | None = None) -> None:
        """End the call of a wrapper with an exception.

        Args:
            error: raised by the call.
            deadline_ns: the deadline that came with the call.
        """
        self._leave()
        self._core._raise(self._permit, self._started_ns, error, deadline_ns)

    def judged(self, outcome: bool | None) -> None:
        """End the call of a wrapper with success, failure, or no outcome (``None``)."""
        self._leave()
        self._core._end(self._permit, self._started_ns, outcome)

    def _enter(self) -> None:
        if self._phase != _FRESH:
            raise RuntimeError("a guard is for one call; make another one with guard()")
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
    guard = Guard.__new__(Guard)  # a call of the type would cost as much as all the rest
    guard._core = core
    guard._outcome = True
    guard._permit = 0
    guard._started_ns = 0
    guard._phase = _FRESH
    return guard
