"""Common rules of breaker, limits, retries and hedges: copies, awaitables, and names in their errors."""

import asyncio
import copy
import functools
import inspect
import pickle
import sys

import pytest

import streaminfer as si
from streaminfer.resilience import CircuitBreaker, RateLimit
from streaminfer.resilience.hedge.hedging import Hedge
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.resilience.retry.retry_budget import RetryBudget

GUARDS = [CircuitBreaker, ConcurrencyLimit, RetryBudget, Hedge, functools.partial(RateLimit, 1.0)]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("guard", GUARDS)
def test_guard_cannot_be_copied(guard, copied):
    """A guard cannot be copied, because a copy would share the state machine and count everything twice."""
    with pytest.raises(TypeError, match="cannot be copied; make another one"):
        copied(guard(name="faces"))


@pytest.mark.parametrize(
    ("guard", "counted"),
    [
        (CircuitBreaker, {"permitted": 1, "ignored": 1, "succeeded": 0, "failed": 0}),
        (ConcurrencyLimit, {"ignored": 1, "succeeded": 0, "in_flight": 0}),
        (RetryBudget, {"requests": 1, "retries": 0, "usual_s": 0.0}),
    ],
    ids=["breaker", "limit", "retries"],
)
def test_function_that_returns_awaitable_is_rejected(guard, counted):
    """A call of a synchronous function that returns an awaitable is an error, which counts as no outcome."""

    async def answer(_x):
        raise ConnectionError

    made = guard()
    guarded = made.wrap(lambda x: answer(2 * x))

    with pytest.raises(TypeError, match="expected an async function where it returns an awaitable"):
        guarded(1.0)

    seen = made.statistics()
    assert {name: getattr(seen, name) for name in counted} == counted


@pytest.mark.parametrize("guard", [CircuitBreaker, ConcurrencyLimit, RetryBudget])
def test_partial_of_an_async_function_stays_async(guard):
    """``functools.partial`` of an async function is guarded as an async function."""

    async def answer(x, y):
        return x + y

    guarded = guard().wrap(functools.partial(answer, 1.0))

    assert asyncio.run(guarded(2.0)) == 3.0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is one of Python 3.12")
@pytest.mark.parametrize("guard", [CircuitBreaker, ConcurrencyLimit, RetryBudget])
def test_object_marked_as_async_function_is_one(guard):
    """An object that is marked as a coroutine function is guarded as one, although its ``__call__`` is plain."""

    async def answer(x):
        return x

    class Caller:
        def __call__(self, x):
            return answer(x)

    marked = inspect.markcoroutinefunction(functools.wraps(answer)(Caller()))

    assert asyncio.run(guard().wrap(marked)(3.0)) == 3.0


def test_breaker_error_names_the_breaker():
    """`CircuitOpen` names the breaker that is open, and says when to retry."""
    breaker = CircuitBreaker(name="faces")
    breaker.force_open()

    with pytest.raises(si.CircuitOpen, match=r"^circuit breaker 'faces' is open; retry after 60.000 s$"):
        breaker.wrap(lambda: 1)()


def test_limit_error_names_the_limit():
    """`Overloaded` names the limit that is reached, and the number of calls in flight."""
    limit = ConcurrencyLimit(limit=1, name="faces")
    limit.try_acquire()

    with pytest.raises(si.Overloaded, match=r"^concurrency limit 'faces' is reached: 1 calls are in flight, of 1"):
        limit.wrap(lambda: 1)()
