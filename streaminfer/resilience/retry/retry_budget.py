"""`RetryBudget`: asks again where that can help, within the deadline, and never more than a share of the traffic.

What caps the retries is explained in ``_call_budget_cy``. Whether one failure is tried again is decided in this order,
and
the first no is final:

1. attempts: fewer than ``max_attempts`` were made;
2. repeatable: the request belongs to no stream, or was declared idempotent;
3. retryable: the error is marked so, or of a class that is;
4. time: the wait before the next attempt, and the time that an attempt usually takes, fit before the deadline;
5. budget: the traffic has paid for it.

The wait is what the error asks for (``retry_after_s``) and the back-off, which doubles with each attempt and is drawn
between its half and its whole, so that callers that failed together do not return together.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number, expected
from streaminfer.errors import BackendError, CircuitOpen, Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.protocols import Backend, Clock, P, R, Service, Wrapper
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._call_budget_cy import CallBudget
from streaminfer.resilience._targets import kind_of, may_repeat, refuse_awaitable, refuse_copy, repeats

if TYPE_CHECKING:
    from streaminfer.resilience.retry.statistics import RetryStatistics

__all__ = ["RetryBudget"]

_Share: type[CallBudget] = thread_safe(CallBudget, ("grant", "count", "left"))
_NEVER_BY_ITSELF = (CircuitOpen, Closed, DeadlineExceeded, InvalidInput)
_DEFAULT = (BackendError, Overloaded)
_MOST = 100
_NEWEST = 1 / 16  # its weight in what an attempt usually takes

Retryable = type[BaseException] | Iterable[type[BaseException]] | Callable[[Exception], Any]


class RetryBudget:
    """Repeats failed calls, as far as the deadline and a share of the traffic allow.

    It stands in front of a service, a backend or a function, with :meth:`wrap` or as a decorator, or is asked by hand,
    with :meth:`count` and :meth:`try_acquire`. What shares the object shares the budget.

    Args:
        max_attempts: how often one request is tried at most, the first time included, ≥ 1.
        ratio: retries per request over the last ten seconds, ≥ 0: 0.1 lets retries add a tenth to the load.
        min_per_s: retries a second that need no traffic, for services that are seldom asked; ten seconds' worth may be
            used at once.
        retryable: classes of exceptions, or a function of the exception. By class, `CircuitOpen`, `Closed`,
            `DeadlineExceeded` and `InvalidInput` are retried only if they are named themselves. An error that has
            ``retryable`` (true or false), or whose cause has it, decides for itself, unless a function is given.
        backoff_s: wait before the first retry, which doubles with each further one; 0.0: none.
        max_wait_s: an error that asks for a longer wait is not retried.
        idempotent: whether requests may be repeated. ``None``: what ``idempotent`` of the service behind says, else all
            but those that belong to a live stream. True: those too. False: none.
        name: for reports.
        seed: of the back-off, for runs that replay; ``None``: from the operating system.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once.

    Example:
        >>> budget = RetryBudget(retryable=ConnectionError)
        >>> answers = iter([ConnectionError("reset"), 7])
        >>> @budget
        ... def ask():
        ...     answer = next(answers)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> ask()
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
        self.max_attempts = check_count("max_attempts", max_attempts, at_most=_MOST)
        self._backoff_ns = check_duration("backoff_s", backoff_s) * 1e9
        self._max_wait_ns = check_duration("max_wait_s", max_wait_s) * 1e9
        check_instance("idempotent", idempotent, lambda it: it is None or isinstance(it, bool), "True, False or None")
        check_instance("name", name, lambda it: isinstance(it, str), "a string")
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        if seed is not None:
            check_count("seed", seed, at_least=0)
        self._classes, self._predicate = _retryable(retryable)
        what = "a finite number ≥ 0"
        self._share = _Share(
            check_number("ratio", ratio, what, lambda it: 0.0 <= it < math.inf),
            check_number("min_per_s", min_per_s, what, lambda it: 0.0 <= it < math.inf),
        )
        self.idempotent = idempotent
        self.name = name
        self._random = random.Random(seed)  # noqa: S311 - spreads callers, keeps no secret
        self._clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        self._usual_ns = 0.0
        self._recovered = 0
        self._gave_up = dict.fromkeys(("attempts", "repeatable", "retryable", "time", "budget"), 0)

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Puts it in front of a service, a backend or a function; also what ``@budget`` does.

        A backend's batch is repeated as a whole when its call raises; rows that failed alone are not. A sync function's
        waits block its thread.

        Args:
            inner: a service, a backend, or a sync or async function.

        Returns:
            The same kind of thing.

        Raises:
            TypeError: none of these, or a generator function.
        """
        kind = kind_of(inner)
        if kind == "service":
            return _RetriedService(self, inner)
        if kind == "backend":
            return _RetriedBackend(self, inner)
        return _retry_async(self, inner) if kind == "async function" else _retry_sync(self, inner)

    __call__ = wrap

    def count(self) -> None:
        """By hand: a request, which pays its share."""
        self._share.count(self._clock())

    def try_acquire(self) -> bool:
        """By hand: whether one retry may be made now; if so it is taken from the budget."""
        return bool(self._share.grant(self._clock()))

    def is_retryable(self, error: BaseException) -> bool:
        """Whether an error is one that asking again may help against."""
        if not isinstance(error, Exception):
            return False
        if self._predicate is not None:
            return bool(self._predicate(error))
        for marked in (error, error.__cause__):
            mark = getattr(marked, "retryable", None)
            if isinstance(mark, bool):
                return mark
        if isinstance(error, _NEVER_BY_ITSELF):  # a wide class does not mean these: they are named, or not meant
            return any(isinstance(error, each) and issubclass(each, _NEVER_BY_ITSELF) for each in self._classes)
        return isinstance(error, self._classes)

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self._clock = clock
            self._clock_given = True

    def statistics(self) -> RetryStatistics:
        """A frozen snapshot."""
        from streaminfer.resilience.retry.statistics import RetryStatistics  # noqa: PLC0415 - who asks for a snapshot loads what it is made of

        return RetryStatistics(
            name=self.name,
            requests=self._share.requests,
            retries=self._share.granted,
            recovered=self._recovered,
            left=self._share.left(self._clock()),
            usual_s=self._usual_ns / 1e9,
            gave_up=dict(self._gave_up),
        )

    def _begin(self) -> int:
        """A request; when it began."""
        now_ns = self._clock()
        self._share.count(now_ns)
        return now_ns

    def _succeeded(self, started_ns: int, attempt: int) -> None:
        took_ns = max(self._clock() - started_ns, 0)
        self._usual_ns += (took_ns - self._usual_ns) * (_NEWEST if self._usual_ns else 1.0)
        if attempt > 1:
            self._recovered += 1

    def _wait_ns(self, error: Exception, attempt: int, deadline_ns: int | None, repeatable: bool) -> float | None:
        """Nanoseconds to wait before the next attempt; ``None``: there is none."""
        why = "attempts"
        if attempt < self.max_attempts:
            why = "repeatable" if not repeatable else "retryable" if not self.is_retryable(error) else ""
        if not why:
            asked_ns = max(float(getattr(error, "retry_after_s", None) or 0.0), 0.0) * 1e9
            backoff_ns = self._backoff_ns * 2.0 ** (attempt - 1)
            wait_ns = asked_ns + (backoff_ns * (0.5 + 0.5 * self._random.random()) if backoff_ns else 0.0)
            now_ns = self._clock()
            late = deadline_ns is not None and now_ns + wait_ns + self._usual_ns >= deadline_ns
            if late or wait_ns > self._max_wait_ns:
                why = "time"
            elif self._share.grant(now_ns):
                return wait_ns
            else:
                why = "budget"
        self._gave_up[why] += 1
        return None

    __reduce__ = refuse_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<RetryBudget({name}{self._share.granted} retries of {self._share.requests} requests)>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()


class _Retried(Wrapper):
    def __init__(self, budget: RetryBudget, inner: Any) -> None:
        super().__init__(inner, budget)
        self.budget = budget
        self._repeats = repeats(inner, budget.idempotent)

    async def _try(self, ask: Callable[[Any], Any], sent: Any) -> Any:
        budget = self.budget
        started_ns = budget._begin()
        attempt = 1
        while True:
            try:
                answer = await ask(sent)
            except Exception as error:
                wait_ns = budget._wait_ns(error, attempt, sent.deadline_ns, may_repeat(sent, self._repeats))
                if wait_ns is None:
                    raise
            else:
                budget._succeeded(started_ns, attempt)
                return answer
            if wait_ns:
                await asyncio.sleep(wait_ns / 1e9)
            attempt += 1
            started_ns = budget._clock()
            if isinstance(sent, Batch):
                sent = sent.again()

    def __repr__(self) -> str:
        return f"{self.budget!r} in front of {self.inner!r}"


class _RetriedService(_Retried):
    async def call(self, request: Request) -> Response:
        """Answers the request, at the last attempt if not before; the last error otherwise."""
        response: Response = await self._try(self.inner.call, request)
        return response


class _RetriedBackend(_Retried):
    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Answers the batch, at the last attempt if not before; the last error otherwise."""
        results: Sequence[Any] = await self._try(self.inner.infer, batch)
        return results


def _retry_async(budget: RetryBudget, function: Callable[..., Any]) -> Callable[..., Any]:
    repeatable = repeats(function, budget.idempotent) is not False

    @functools.wraps(function)
    async def retried(*args: Any, **kwargs: Any) -> Any:
        started_ns = budget._begin()
        attempt = 1
        while True:
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                wait_ns = budget._wait_ns(error, attempt, None, repeatable)
                if wait_ns is None:
                    raise
            else:
                budget._succeeded(started_ns, attempt)
                return result
            if wait_ns:
                await asyncio.sleep(wait_ns / 1e9)
            attempt += 1
            started_ns = budget._clock()

    return retried


def _retry_sync(budget: RetryBudget, function: Callable[..., Any]) -> Callable[..., Any]:
    repeatable = repeats(function, budget.idempotent) is not False

    @functools.wraps(function)
    def retried(*args: Any, **kwargs: Any) -> Any:
        started_ns = budget._begin()
        attempt = 1
        while True:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                wait_ns = budget._wait_ns(error, attempt, None, repeatable)
                if wait_ns is None:
                    raise
            else:
                if hasattr(type(result), "__await__"):
                    refuse_awaitable(function, result)
                budget._succeeded(started_ns, attempt)
                return result
            if wait_ns:
                time.sleep(wait_ns / 1e9)
            attempt += 1
            started_ns = budget._clock()

    return retried


def _retryable(given: Any) -> tuple[tuple[type[BaseException], ...], Callable[[Exception], Any] | None]:
    """Classes, or a function that says which."""
    what = "classes of exceptions, or a function of an exception"
    if isinstance(given, type):
        given = (given,)
    elif callable(given):
        return (), given
    if not isinstance(given, Iterable):
        raise TypeError(expected("retryable", what, given))
    classes = tuple(given)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(expected("retryable", what, each))
    return classes, None
