"""Requests that end without a response: reference counts alone free their inputs, whatever layers they went through.

An error refers to the frames that it passed, and these to what their variables name. If a frame still names what holds
the error, such as the future of the response, the two are a cycle, and the inputs of the request stay in memory until
the cyclic garbage collector runs. In an outage, when every request fails, they would fill the memory.
"""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable

import numpy as np
import pytest

import streaminfer as si
from streaminfer.routing import Canary, Shadow

pytestmark = pytest.mark.uncompiled

DURATION_S = 0.01
TIMEOUT_S = 0.1
AFTERWARDS_S = 1.0  # until copies and repetitions of the requests have ended too


@pytest.fixture(autouse=True)
def _only_references_count():
    """Turn the garbage collector off, and the log, because pytest keeps the errors in it."""
    logging.disable()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


class Model:
    """Backend, and batch function, that serves batches until ``ending`` is set."""

    returns_new_arrays = True

    def __init__(self):
        self.ending = None

    def infer(self, batch) -> Awaitable:
        return self(batch.inputs)

    def __call__(self, inputs) -> Awaitable:
        if self.ending == "fails at once":
            raise OSError("down")
        return self._answer(inputs)

    async def _answer(self, inputs):
        await asyncio.sleep(DURATION_S)
        ending = self.ending
        if ending == "fails once":
            self.ending = None
        if ending in {"fails", "fails once"}:
            raise OSError("down")
        if ending == "rejects":
            raise si.InvalidInput("a value is out of range")
        if ending in {"is late", "is cancelled"}:
            await asyncio.Event().wait()
        return inputs.copy()


class Around:
    """Layer that awaits, as layers of users do."""

    def wrap(self, inner):
        self.inner = inner
        return self

    async def call(self, request):
        return await self.inner.call(request)


def batcher():
    return si.AdaptiveBatcher(max_batch_size=4)


def cache():
    return si.EdgeCache(ttl_s=9.0, maxsize=9)


def hedge():
    return si.Hedge(quantile=0.5, max_extra=1.0)


def limit():
    return si.ConcurrencyLimit(limit=1, max_wait_s=TIMEOUT_S / 2)


def router(model, **settings):
    routes = si.Route("a", [batcher(), model]), si.Route("b", [batcher(), model], quality=0.5)
    return si.FallbackRouter(*routes, **settings)


def failing_default(request):
    raise LookupError("no default")


def replicas(model):
    return si.Replicas(*(si.Replica(name, si.Stack(batcher(), model)) for name in "ab"), seed=1)


def retry(**settings):
    return si.RetryBudget(ratio=1.0, min_per_s=100.0, **settings)


LAYERS = {
    "backend": lambda model: [model],
    "batcher": lambda model: [batcher(), model],
    "layer": lambda model: [Around(), batcher(), model],
    "cache": lambda model: [cache(), batcher(), model],
    "cached errors": lambda model: [si.EdgeCache(ttl_s=9.0, maxsize=9, negative_ttl_s=0.01), batcher(), model],
    "retry": lambda model: [retry(), batcher(), model],
    "retried batches": lambda model: [batcher(), retry(retryable=(OSError,)), model],
    "hedge": lambda model: [hedge(), batcher(), model],
    "hedged batches": lambda model: [batcher(), hedge(), model],
    "limit": lambda model: [limit(), batcher(), model],
    "limited batches": lambda model: [batcher(), limit(), model],
    "breaker": lambda model: [Around(), si.CircuitBreaker(minimum_calls=1000), batcher(), model],
    "rate limit": lambda model: [Around(), si.RateLimit(1e6), batcher(), model],
    "telemetry": lambda model: [si.Telemetry("outer"), Around(), si.Telemetry("inner"), batcher(), model],
    "cost": lambda model: [Around(), si.CostMeter(per_second=1.0), batcher(), model],
    "router": lambda model: [router(model)],
    "router with a default": lambda model: [router(model, default=failing_default)],
    "router in a layer": lambda model: [Around(), router(model)],
    "router in a cache": lambda model: [cache(), router(model)],
    "router in a hedge": lambda model: [hedge(), router(model)],
    "replicas": lambda model: [replicas(model)],
    "replicas in a cache": lambda model: [cache(), replicas(model)],
    "canary": lambda model: [Canary([batcher(), model], [batcher(), model], share=0.5)],
    "shadow": lambda model: [Shadow([batcher(), model], timeout_s=TIMEOUT_S), batcher(), model],
    "stack": lambda model: [si.Telemetry("outer"), si.Stack(si.Telemetry("inner"), cache(), batcher(), model)],
}

ENDINGS = {
    "fails": (OSError, si.BackendError, si.Overloaded),
    "fails at once": (OSError, si.BackendError, si.Overloaded),
    "rejects": (si.InvalidInput, si.Overloaded),
    "is late": (si.DeadlineExceeded, si.Overloaded, si.BackendError),
    "is cancelled": asyncio.CancelledError,
}


async def caught(stack, inputs, timeout_s):
    """Call a stack as code that handles its errors does."""
    try:
        return await stack(inputs, timeout_s=timeout_s)
    except BaseException as error:
        return type(error)()


CALLS = {
    "call": caught,
    "task": lambda stack, inputs, timeout_s: stack(inputs, timeout_s=timeout_s),
    "wait": lambda stack, inputs, timeout_s: stack(inputs, wait=True, timeout_s=timeout_s),
    "map": lambda stack, inputs, timeout_s: stack.map([inputs, inputs], timeout_s=timeout_s),
    "rows": lambda stack, inputs, timeout_s: stack.rows(inputs[np.newaxis], timeout_s=timeout_s),
}


async def left_of_ended(send, ending):
    """Send three requests at a time that end without a response; return how many of their inputs are alive."""
    left, tasks = [], []
    for number in range(3):
        inputs = np.full(2, float(number))
        left.append(weakref.ref(inputs))
        tasks.append(asyncio.ensure_future(send(inputs, None if ending == "is cancelled" else TIMEOUT_S)))
        del inputs
    if ending == "is cancelled":
        await asyncio.sleep(DURATION_S)
        for number in range(3):
            tasks[number].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(it, ENDINGS[ending]) for it in outcomes)
    del tasks, outcomes
    await asyncio.sleep(AFTERWARDS_S)
    return sum(it() is not None for it in left)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("layers", LAYERS)
async def test_ended_request_frees_its_inputs(loop, layers, ending, call):
    """A request without a response leaves its inputs in no cycle, and no layer keeps them."""
    model = Model()

    async with si.Stack(*LAYERS[layers](model), clock=loop.clock) as stack:
        for number in range(8):
            await stack(np.full(2, 100.0 + number))
        model.ending = ending

        left = await left_of_ended(lambda inputs, timeout_s: CALLS[call](stack, inputs, timeout_s), ending)

    assert left == 0


SAVED = {
    "retry": LAYERS["retry"],
    "retried batches": LAYERS["retried batches"],
    "router": LAYERS["router"],
    "router in a cache": LAYERS["router in a cache"],
    "default": lambda model: [si.FallbackRouter(si.Route("a", [batcher(), model]), default=np.zeros(2))],
}


@pytest.mark.parametrize("layers", SAVED)
async def test_saved_request_frees_its_inputs(loop, layers):
    """A request that fails once, and gets a response nevertheless, leaves its inputs in no cycle."""
    model = Model()

    async with si.Stack(*SAVED[layers](model), clock=loop.clock) as stack:
        model.ending = "fails once"
        inputs = np.zeros(2)
        left = weakref.ref(inputs)
        assert (await stack(inputs) == 0.0).all()
        del inputs
        await asyncio.sleep(AFTERWARDS_S)

        assert model.ending is None
        assert left() is None


FUNCTIONS = {
    "batcher": lambda model: batcher().wrap(model),
    "cache": lambda model: cache().wrap(batcher().wrap(model)),
    "retry": lambda model: retry(retryable=(OSError,)).wrap(model),
    "hedge": lambda model: hedge().wrap(model),
    "limit": lambda model: si.ConcurrencyLimit(limit=1, max_wait_s=TIMEOUT_S / 2).wrap(model),
    "breaker": lambda model: si.CircuitBreaker(minimum_calls=1000).wrap(model),
    "rate limit": lambda model: si.RateLimit(1e6).wrap(model),
    "telemetry": lambda model: si.Telemetry("t").wrap(model),
}


@pytest.mark.parametrize("ending", ["fails", "is cancelled"])
@pytest.mark.parametrize("layer", FUNCTIONS)
async def test_ended_function_call_frees_its_inputs(loop, layer, ending):
    """A call of a wrapped function that ends without a result leaves its inputs in no cycle."""
    model = Model()

    async def function(inputs):
        return await model(inputs)

    wrapped = FUNCTIONS[layer](function)
    for number in range(8):
        await wrapped(np.full(2, 100.0 + number))
    model.ending = ending

    assert await left_of_ended(lambda inputs, _: wrapped(inputs), ending) == 0
