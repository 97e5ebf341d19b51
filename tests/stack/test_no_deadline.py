"""Explicit "no deadline", which overrides the default from a batcher's `slo_s`, and `timeout_s` in all calls."""

import asyncio
import math

import numpy as np
import pytest

import streaminfer as si
from streaminfer.request import NEVER_NS, deadline_after, time_left_s
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

SLOW_S = 0.2


def batcher(slo_s=0.05):
    return si.AdaptiveBatcher(max_batch_size=4, slo_s=slo_s, policy="greedy")


class Plain:
    """Service that ends no request at its deadline."""

    async def call(self, request):
        await asyncio.sleep(SLOW_S)
        return si.Response(request.inputs)


def cached_route(backend):
    inner = si.Stack(batcher(), backend)
    return si.FallbackRouter(si.Route("a", si.Stack(si.EdgeCache(maxsize=4), si.Replicas(si.Replica("r", inner)))))


STACKS = {
    "batcher": lambda backend: (batcher(), backend),
    "telemetry": lambda backend: (si.Telemetry(), batcher(), backend),
    "limits": lambda backend: (
        si.RetryBudget(),
        si.Hedge(),
        si.ConcurrencyLimit(),
        batcher(),
        si.CircuitBreaker(),
        backend,
    ),
    "cache": lambda backend: (si.EdgeCache(maxsize=4), batcher(), backend),
    "router": lambda backend: (cached_route(backend),),
    "replica of a plain service": lambda backend: (si.Replicas(si.Replica("r", Plain())),),
    "plain service": lambda backend: (Plain(),),
    "without a batcher": lambda backend: (backend,),
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_infinite_timeout_is_no_deadline_in_any_layer(layers):
    """A request with `timeout_s=math.inf` has no deadline in any layer, whatever the `slo_s` of the batcher."""

    async def main(loop):
        async with si.Stack(*layers(ScriptedBackend(duration_s=SLOW_S)), clock=loop.clock) as stack:
            assert await stack(1.0, timeout_s=math.inf) == 1.0
            assert await stack(2.0, timeout_s=math.inf, wait=True) == 2.0
            assert (await stack.call(si.Request(3.0, deadline_ns=NEVER_NS))).outputs == 3.0
            assert (await stack.call(si.Request(4.0), timeout_s=math.inf)).outputs == 4.0
            assert await stack.map([5.0], timeout_s=math.inf) == [5.0]

    run(main)


def test_default_deadline_still_applies_to_other_calls():
    """A request without a deadline leaves the default deadline of other requests in force."""

    async def main(loop):
        async with si.Stack(batcher(), ScriptedBackend(duration_s=SLOW_S), clock=loop.clock) as stack:
            patient = asyncio.ensure_future(stack(1.0, timeout_s=math.inf))
            with pytest.raises(si.DeadlineExceeded):
                await stack(1.0)
            assert await patient == 1.0

    run(main)


def test_infinite_timeout_reaches_the_backend_as_none():
    async def main(loop):
        backend = ScriptedBackend()
        async with si.Stack(batcher(), backend, clock=loop.clock) as stack:
            await stack(1.0, timeout_s=math.inf)
        assert backend.batches[0].deadline_ns is None

    run(main)


def test_infinite_timeout_of_wrapped_functions():
    """A function wrapped by a batcher or a cache accepts an infinite timeout."""

    async def main(loop):
        async def slow(x):
            await asyncio.sleep(SLOW_S)
            return x

        layer = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05, policy="greedy", clock=loop.clock)
        batched = layer.wrap(slow)
        cached = si.EdgeCache(maxsize=4, clock=loop.clock).wrap(batched)
        assert await batched(1.0, timeout_s=math.inf) == 1.0
        assert await cached(2.0, timeout_s=math.inf) == 2.0
        with pytest.raises(si.DeadlineExceeded):
            await cached(3.0)

    run(main)


def test_timeout_of_call_overrides_request_deadline():
    """`call(request, timeout_s=)` takes the place of the request's own deadline."""

    async def main(loop):
        async with si.Stack(batcher(None), ScriptedBackend(duration_s=SLOW_S), clock=loop.clock) as stack:
            request = si.Request(1.0, deadline_ns=loop.now_ns + 10**12)
            begun = loop.now_ns
            with pytest.raises(si.DeadlineExceeded):
                await stack.call(request, timeout_s=0.05)
            assert loop.now_ns - begun == 50_000_000
            with pytest.raises(si.InvalidInput, match="timeout_s"):
                await stack.call(request, timeout_s=-1)

    run(main)


def test_blocking_calls_take_the_same_keywords():
    with si.Stack(batcher(), si.CpuBackend(np.negative)).blocking() as infer:
        assert infer(1.0, timeout_s=math.inf, priority=1, tenant="t") == -1.0
        assert infer.call(si.Request(2.0), timeout_s=math.inf).outputs == -2.0
        assert infer.map([3.0], concurrency=2, timeout_s=math.inf, tags=("a",)) == [-3.0]
        with pytest.raises(TypeError, match="deadline_s"):
            infer(1.0, deadline_s=1)


def test_blocking_calls_end_at_their_time_limit():
    calls = {
        "call": lambda infer, **limit: infer.call(si.Request(1.0), **limit).outputs,
        "inputs": lambda infer, **limit: infer(1.0, **limit),
        "map": lambda infer, **limit: infer.map([1.0], **limit)[0],
        "rows": lambda infer, **limit: infer.rows(np.ones(1), **limit)[0],
    }
    with si.Stack(batcher(None), si.CpuBackend(np.negative)).blocking() as infer:
        for call in calls.values():
            assert call(infer) == -1.0
            with pytest.raises(si.DeadlineExceeded):
                call(infer, timeout_s=0)


def test_map_accepts_no_common_cache_key():
    """`map` accepts no cache key, because one key for all inputs would give all of them one response."""

    async def main(loop):
        async with si.Stack(ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(TypeError, match="key"):
                await stack.map([1.0, 2.0], key="k")

    run(main)


def test_limit_treats_none_and_never_ns_alike():
    """A limit learns the same from the deadlines `None` and `NEVER_NS`.

    A `TimeoutError` of a call without a deadline does not count as a timeout of 292 years.
    """

    def learned(deadline_ns):
        async def main(loop):
            calls = 0

            async def answers_or_fails(request):
                nonlocal calls
                calls += 1
                await asyncio.sleep(0.01)
                if calls % 3 == 0:
                    raise TimeoutError
                return si.Response(request.inputs)

            limit = si.ConcurrencyLimit(clock=loop.clock)
            limited = limit.wrap(type("Service", (), {"call": staticmethod(answers_or_fails)})())
            for _ in range(300):
                many = [limited.call(si.Request(1.0, deadline_ns=deadline_ns)) for _ in range(4)]
                await asyncio.gather(*many, return_exceptions=True)
            return limit.statistics()

        return run(main)

    assert learned(NEVER_NS) == learned(None)
    assert learned(None).windows > 1


def test_deadline_and_time_left_conversions():
    assert deadline_after(5, math.inf) == deadline_after(5, np.float64("inf")) == NEVER_NS
    assert deadline_after(5, 1) == 1_000_000_005
    assert time_left_s(None, 5) is time_left_s(NEVER_NS, 5) is None
    assert time_left_s(1_000_000_005, 5) == 1.0
    assert time_left_s(0, 10**9) == -1.0
    for bad in (math.nan, -math.inf, -1.0, "inf", True):
        with pytest.raises(si.InvalidInput, match="timeout_s"):
            deadline_after(5, bad)
