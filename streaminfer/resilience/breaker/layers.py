"""The circuit breaker around a service, a backend or an async function: thin wrappers around one guarded call."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer._internal.signatures import define_with_parameters
from streaminfer.protocols import (
    Admission,
    AdmissionReason,
    Capabilities,
    Clock,
    Wrapper,
    adapt,
)
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience.breaker._guard_cy import BreakerCore, Guard
from streaminfer.sync_layer import SyncService

__all__ = ["GuardedBackend", "GuardedService", "guard_async"]


class _Guarded(Wrapper):
    """Common base of a guarded service and a guarded backend.

    Attributes:
        inner: the guarded object, which has all attributes that the breaker does not have.
        breaker: the `CircuitBreaker`.
        name: name of the guarded object, for errors and responses.
    """

    def __init__(self, breaker: BreakerCore, inner: Any) -> None:
        super().__init__(inner, breaker)
        self.breaker = breaker
        self._enter = breaker.enter
        self._admission = adapt(inner).capabilities().admission

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner object, with the `admission` of the breaker."""
        return super().capabilities()._replace(admission=self.admission)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return whether a request would pass the breaker now, and the inner admission; changes only the ramp-up."""
        if not self.breaker._machine.permits(now_ns):
            return Admission(False, AdmissionReason.CIRCUIT_OPEN, self.breaker.retry_after_ns(now_ns) / 1e9)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)


class GuardedService(_Guarded, SyncService):
    """A service with a breaker; each call is an outcome."""

    async def call(self, request: Request) -> Response:
        """Serve the request without a `Stack`; as the inherited one does, in fewer calls.

        Raises:
            CircuitOpen: the circuit is open.
        """
        guard = self._enter()
        try:
            response = await self._call(request)
        except BaseException as error:
            guard.raised(error, request.deadline_ns)
            raise
        guard.returned(response)
        return response

    @property
    def clock(self) -> Clock:
        """Return the clock of the breaker."""
        return self.breaker._clock or time.monotonic_ns

    def enter(self, request: Request, now_ns: int) -> Guard:  # noqa: ARG002 - the breaker reads its clock
        """Let the request pass.

        Raises:
            CircuitOpen: the circuit is open.
        """
        return self._enter()

    def exit(self, request: Request, token: Guard, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Record the outcome."""
        if isinstance(outcome, BaseException):
            token.raised(outcome, request.deadline_ns)
        else:
            token.returned(outcome)


class GuardedBackend(_Guarded):
    """A backend with a breaker; each batch is one outcome: a failure if the call raises or every row failed.

    A failed batch that is sent again in parts has already counted as one failure. A part that fails does not count
    again, because the part with the bad row must fail. A part that succeeds counts as a success.
    """

    def __init__(self, breaker: BreakerCore, inner: Any) -> None:
        super().__init__(breaker, inner)
        self._infer: Callable[[Batch], Any] = inner.infer
        self._inner_infer_now = adapt(inner).infer_now
        if self._inner_infer_now is not None:
            self.infer_now = self._infer_now
        self._inner_begin = adapt(inner).begin_infer

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Run the batch if the circuit lets it pass.

        Raises:
            CircuitOpen: the circuit does not let it pass.
        """
        guard = self._enter()
        try:
            results: Sequence[Any] = await self._infer(batch)
        except BaseException as error:
            self._raised(guard, batch, error)
            raise
        self._returned(guard, batch, results)
        return results

    def _infer_now(self, batch: Batch) -> Any:
        guard = self._enter()
        try:
            results = self._inner_infer_now(batch)  # type: ignore[misc] # which then is not None
        except BaseException as error:
            self._raised(guard, batch, error)
            raise
        self._returned(guard, batch, results)
        return results

    @property
    def begin_infer(self) -> Callable[[Batch, Callable[[Any, BaseException | None], None]], Any] | None:
        """``begin_infer`` of the backend, for a batch that the circuit lets pass; ``None``: the backend has none."""
        return None if self._inner_begin is None else self._begin_infer

    def _begin_infer(self, batch: Batch, done: Callable[[Any, BaseException | None], None]) -> Any:
        guard = self._enter()

        def ended(results: Any, error: BaseException | None) -> None:
            if error is not None:
                self._raised(guard, batch, error)
            else:
                try:
                    self._returned(guard, batch, results)
                except BaseException as failure:
                    done(None, failure)  # an error of a predicate fails the batch
                    if isinstance(failure, LISTENER_ERRORS):
                        return
                    raise
            done(results, error)

        try:
            return self._inner_begin(batch, ended)  # type: ignore[misc] # which then is not None
        except BaseException as error:
            self._raised(guard, batch, error)
            raise

    def _raised(self, guard: Guard, batch: Batch, error: BaseException) -> None:
        if isinstance(error, Exception) and batch.is_part:
            guard.judged(None)
        else:
            guard.raised(error, batch.deadline_ns)

    def _returned(self, guard: Guard, batch: Batch, results: Any) -> None:
        outcome = None
        try:
            outcome = _outcome_of_rows(self.breaker, results, batch)
            if not outcome and batch.is_part:
                outcome = None
        finally:  # a predicate that fails says nothing about the batch
            guard.judged(outcome)


def _outcome_of_rows(breaker: BreakerCore, results: Any, batch: Batch) -> bool | None:
    """Return success if a row succeeded, else failure if a row failed, else ``None``, no outcome."""
    outcome = None
    count = len(batch)
    try:
        if isinstance(results, (tuple, Mapping)):
            from streaminfer.batching.assembly.unbatch import split_rows  # noqa: PLC0415 - only for several outputs

            results = split_rows(results, count, "", batch.size)
        if isinstance(results, (str, bytes)) or len(results) not in (count, batch.size):
            return False  # the batcher rejects such results
        rows = results.__getitem__
    except (TypeError, AttributeError):
        return False
    for position in range(count):
        row = rows(position)
        if isinstance(row, BaseException):
            verdict = False if breaker.counts(row) else None
        else:
            verdict = breaker.outcome_of(row)
        if verdict:
            return True
        if verdict is not None:
            outcome = False
    return outcome


_WRAPPER_SOURCE = """
async def guarded({parameters}):
    __guard = __enter()
    try:
        __result = await __function({arguments})
    except BaseException as __error:
        __guard.raised(__error)
        raise
    __guard.returned(__result)
    return __result
"""


def guard_async(breaker: BreakerCore, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async function around one: a real async function, because ``iscoroutinefunction`` tests for it."""
    guarded = define_with_parameters(function, _WRAPPER_SOURCE, {"__enter": breaker.enter})["guarded"]
    return functools.wraps(function)(guarded)
