"""`RetryBudget`: repeats failed calls, within the deadline and up to a share of the traffic.

*Design.* ``_call_budget_cy`` explains how many retries are allowed. A failure is retried if all of these hold, tested
in this order:

1. attempts: fewer than ``max_attempts`` were made;
2. repeatable: the request belongs to no stream, or was declared idempotent;
3. retryable: the error is marked as retryable, or its class is;
4. time: the wait before the next attempt, and the usual duration of an attempt, fit before the deadline;
5. throttled: the budget has a retry left.

The wait is the error's ``retry_after_s`` plus the back-off. The back-off doubles with each attempt; its actual length
is random, between a half and the whole, so that callers that failed together do not return together.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_amount, check_count, check_duration, check_instance
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import (
    BackendError,
    CircuitOpen,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    says_retry_after_s,
    says_retryable,
)
from streaminfer.protocols import Backend, Clock, P, R, Service, Wrapper
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._call_budget_cy import CallBudget
from streaminfer.resilience._targets import (
    exception_classes,
    may_repeat,
    reject_awaitable,
    reject_copy,
    repeats,
    wrap_by_kind,
)

if TYPE_CHECKING:
    from streaminfer.resilience.retry.statistics import RetryStatistics

__all__ = ["RetryBudget"]

_Budget: type[CallBudget] = thread_safe(CallBudget)
_RETRIED_IF_NAMED = (CircuitOpen, Closed, DeadlineExceeded, InvalidInput)
_DEFAULT = (BackendError, Overloaded)
_MAX_ATTEMPTS = 100
_NEWEST_WEIGHT = 1 / 16  # weight of the newest attempt in the usual duration

Retryable = type[BaseException] | Iterable[type[BaseException]] | Callable[[Exception], Any]


class RetryBudget(StackClock):
    """Repeats failed calls, as far as the deadline and a share of the traffic allow.

    Wrap a service, a backend or a function with :meth:`wrap` or as a decorator, or call :meth:`count` and
    :meth:`try_acquire` by hand. All uses of one object share the budget.

    Args:
        max_attempts: maximum number of attempts per request, including the first one, ≥ 1.
        ratio: retries per request over the last ten seconds, ≥ 0: 0.1 lets retries add a tenth to the load.
        min_per_s: retries per second that need no traffic, for services with few requests; ten seconds' worth may be
            used at once.
        retryable: classes of exceptions, or a function of the exception. Of the classes, `CircuitOpen`, `Closed`,
            `DeadlineExceeded` and `InvalidInput` must be named themselves; a base class does not include them. If an
            error or its cause has ``retryable`` (true or false), this decides, unless ``retryable`` is a function.
        backoff_s: wait before the first retry, which doubles with each further retry; 0.0: no wait.
        max_wait_s: the longest wait before a retry (the error's ``retry_after_s`` plus the back-off); if it would be
            longer, there is no retry.
        idempotent: whether requests may be repeated. ``None``: as the service's ``idempotent`` declares, else all
            requests that belong to no live stream. True: all requests. False: no request.
        name: for reports.
        seed: seed of the back-off, for runs that replay; ``None``: from the operating system.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once.

    Example:
        >>> budget = RetryBudget(retryable=ConnectionError)
        >>> outcomes = iter([ConnectionError("reset"), 7])
        >>> @budget
        ... def call():
        ...     outcome = next(outcomes)
        ...     if isinstance(outcome, Exception):
        ...         raise outcome
        ...     return outcome
        >>> call()
        7
    """

    def __init__(
        self,
        *,
        max_attempts: int = 2,
        ratio: float = 0.1,
        min_per_s: float = 1.0,
        retryable: Retryable = _DEFAULT,
        backoff_s: float = 0.0,
        max_wait_s: float = 1.0,
        idempotent: bool | None = None,
        name: str = "",
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.max_attempts = check_count("max_attempts", max_attempts, at_most=_MAX_ATTEMPTS)
        self._backoff_ns = check_duration("backoff_s", backoff_s) * 1e9
        self._max_wait_ns = check_duration("max_wait_s", max_wait_s) * 1e9
        check_instance("idempotent", idempotent, bool | None, "True, False or None")
        check_instance("name", name, str, "a string")
        if seed is not None:
            seed = check_count("seed", seed, at_least=0)
        self._classes, self._predicate = exception_classes("retryable", retryable)
        self._budget = _Budget(check_amount("ratio", ratio), check_amount("min_per_s", min_per_s))
        self.idempotent = idempotent
        self.name = name
        self._random = random.Random(seed)  # noqa: S311 - spreads callers, keeps no secret
        self._clock: Clock = self._accept_clock(clock) or time.monotonic_ns
        self._usual_ns = 0.0
        self._succeeded_after_retry = 0
        self._not_retried = dict.fromkeys(("attempts", "repeatable", "retryable", "time", "throttled"), 0)

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a service, a backend or a function; also as a decorator, ``@budget``.

        A backend's batch is repeated as a whole if its call raises; single rows that failed are not repeated. The waits
        of a sync function block its thread.

        Args:
            inner: a service, a backend, or a sync or async function.

        Returns:
            The same kind of object.

        Raises:
            TypeError: ``inner`` is none of these, or is a generator function.
        """
        return wrap_by_kind(self, inner, _RetriedService, _RetriedBackend, _retry_async, _retry_sync)

    __call__ = wrap

    def count(self) -> None:
        """Count a request by hand, which adds to the budget."""
        self._budget.count(self._clock())

    def try_acquire(self) -> bool:
        """Take one retry from the budget by hand; return whether it may be made now."""
        return bool(self._budget.grant(self._clock()))

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether a retry can help against an error."""
        if not isinstance(error, Exception):
            return False
        if self._predicate is not None:
            return bool(self._predicate(error))
        for source in (error, error.__cause__):
            retryable = says_retryable(source)
            if retryable is not None:
                return retryable
        if isinstance(error, _RETRIED_IF_NAMED):  # a base class does not include these: they must be named
            return any(isinstance(error, each) and issubclass(each, _RETRIED_IF_NAMED) for each in self._classes)
        return isinstance(error, self._classes)

    def statistics(self) -> RetryStatistics:
        """Return a frozen snapshot."""
        from streaminfer.resilience.retry.statistics import RetryStatistics  # noqa: PLC0415 - serving does not need it

        return RetryStatistics(
            name=self.name,
            requests=self._budget.requests,
            retries=self._budget.granted,
            succeeded_after_retry=self._succeeded_after_retry,
            left=self._budget.left(self._clock()),
            usual_s=self._usual_ns / 1e9,
            not_retried=dict(self._not_retried),
        )

    async def _run(self, send: Callable[[Any], Awaitable[Any]], sent: Request | Batch | None, rule: bool | None) -> Any:
        """Return the result of the first attempt that succeeds, or raise the last error.

        Args:
            send: begins an attempt.
            sent: the request or batch, the argument of ``send``; ``None``: a function's call, without a deadline.
            rule: the result of ``repeats``.
        """
        self.count()
        attempt = 0
        while True:
            attempt += 1
            started_ns = self._clock()
            try:
                result = await send(sent)
            except Exception as error:
                wait_s = self._wait_s(error, attempt, sent, rule)
                if wait_s is None:
                    raise
            else:
                self._succeeded(started_ns, attempt)
                return result
            if wait_s:
                await asyncio.sleep(wait_s)
            if isinstance(sent, Batch):
                sent = sent.again()

    def _succeeded(self, started_ns: int, attempt: int) -> None:
        duration_ns = max(self._clock() - started_ns, 0)
        self._usual_ns += (duration_ns - self._usual_ns) * (_NEWEST_WEIGHT if self._usual_ns else 1.0)
        if attempt > 1:
            self._succeeded_after_retry += 1

    def _wait_s(self, error: Exception, attempt: int, sent: Request | Batch | None, rule: bool | None) -> float | None:
        """Return the seconds to wait before the next attempt; ``None``: there is no next attempt."""
        reason = "attempts"
        if attempt < self.max_attempts:
            repeatable = rule is not False if sent is None else may_repeat(sent, rule)
            reason = "repeatable" if not repeatable else "retryable" if not self.is_retryable(error) else ""
        if not reason:
            retry_after_ns = says_retry_after_s(error) * 1e9
            backoff_ns = self._backoff_ns * 2.0 ** (attempt - 1)
            wait_ns = retry_after_ns + (backoff_ns * (0.5 + 0.5 * self._random.random()) if backoff_ns else 0.0)
            now_ns = self._clock()
            deadline_ns = None if sent is None else sent.deadline_ns
            late = deadline_ns is not None and now_ns + wait_ns + self._usual_ns >= deadline_ns
            if late or wait_ns > self._max_wait_ns:
                reason = "time"
            elif self._budget.grant(now_ns):
                return wait_ns / 1e9
            else:
                reason = "throttled"
        self._not_retried[reason] += 1
        return None

    __reduce__ = reject_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<RetryBudget({name}{self._budget.granted} retries of {self._budget.requests} requests)>"


class _Retried(Wrapper):
    def __init__(self, budget: RetryBudget, inner: Any) -> None:
        super().__init__(inner, budget)
        self.budget = budget
        self._repeats = repeats(inner, budget.idempotent)


class _RetriedService(_Retried):
    async def call(self, request: Request) -> Response:
        """Return the first response to the request, or raise the last error."""
        response: Response = await self.budget._run(self.inner.call, request, self._repeats)
        return response


class _RetriedBackend(_Retried):
    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return the first response to the batch, or raise the last error."""
        results: Sequence[Any] = await self.budget._run(self.inner.infer, batch, self._repeats)
        return results


def _retry_async(budget: RetryBudget, function: Callable[..., Any]) -> Callable[..., Any]:
    rule = repeats(function, budget.idempotent)

    @functools.wraps(function)
    async def retried(*args: Any, **kwargs: Any) -> Any:
        return await budget._run(lambda _: function(*args, **kwargs), None, rule)

    return retried


def _retry_sync(budget: RetryBudget, function: Callable[..., Any]) -> Callable[..., Any]:
    rule = repeats(function, budget.idempotent)

    @functools.wraps(function)
    def retried(*args: Any, **kwargs: Any) -> Any:
        budget.count()
        attempt = 0
        while True:
            attempt += 1
            started_ns = budget._clock()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                wait_s = budget._wait_s(error, attempt, None, rule)
                if wait_s is None:
                    raise
            else:
                reject_awaitable(function, result)
                budget._succeeded(started_ns, attempt)
                return result
            if wait_s:
                time.sleep(wait_s)

    return retried
