"""Calls, starts and stops that are cancelled at each turn of the event loop: all end, and the stack still serves.

A turn of the loop runs the callbacks that were ready when it began. A cancellation before the first callback meets
other states than a cancellation after the last, and a task that has not taken its first step runs no clean-up.
"""

import asyncio

import pytest
from turns import PATIENCE_S, at_every_turn, cancel, cancel_every_task, cancel_twice

import streaminfer as si
from streaminfer.routing import Canary, Shadow
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled


def batcher(**settings):
    return si.AdaptiveBatcher(max_batch_size=2, **settings)


def other():
    return ScriptedBackend(duration_s=0.010, example=1.0)


def routes(backend):
    best = si.Route("best", si.Stack(batcher(slo_s=0.1), backend))
    return [si.FallbackRouter(best, si.Route("quick", si.Stack(batcher(slo_s=0.1), other()), quality=0.5))]


def replicas(backend):
    return [si.Replicas(*(si.Replica(name, si.Stack(batcher(), it)) for name, it in (("a", backend), ("b", other()))))]


def everything(backend):
    cache, limit = si.EdgeCache(ttl_s=9.0, maxsize=9), si.ConcurrencyLimit(limit=2, max_wait_s=5.0)
    return [si.Telemetry("t"), cache, limit, si.RetryBudget(), batcher(slo_s=0.1), si.CircuitBreaker(), backend]


LAYERS = {
    "backend": lambda backend: [backend],
    "batcher": lambda backend: [batcher(), backend],
    "cache": lambda backend: [si.EdgeCache(ttl_s=0.005, stale_s=9.0, maxsize=9), backend],
    "limit": lambda backend: [si.ConcurrencyLimit(limit=1, max_wait_s=5.0), batcher(), backend],
    "hedge": lambda backend: [si.Hedge(to=si.Stack(batcher(), other())), batcher(), backend],
    "cost": lambda backend: [si.CostMeter(per_second=1.0), batcher(), backend],
    "canary": lambda backend: [Canary(si.Stack(batcher(), backend), si.Stack(batcher(), other()), share=0.5)],
    "shadow": lambda backend: [Shadow(si.Stack(batcher(), other())), batcher(), backend],
    "routes": routes,
    "replicas": replicas,
    "everything": everything,
}


async def cancelled(loop, layers, turns, place, cut):
    """Cancel a call among others, and check that all end; return whether the call ended before its turn came."""
    backend = ScriptedBackend(duration_s=0.010)
    stack = si.Stack(*LAYERS[layers](backend), clock=loop.clock)
    async with asyncio.timeout(PATIENCE_S):
        await stack.start()
        victim = asyncio.ensure_future(stack(1.0))
        bystanders = [asyncio.ensure_future(stack(float(number % 2))) for number in range(3)]
        calls, kept = [victim, *bystanders], asyncio.current_task()
        loop.act_in(turns, place, lambda: cut(victim, bystanders, kept))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        is_over = await loop.acted_too_late()
        assert all(it in (0.0, 1.0) or isinstance(it, asyncio.CancelledError) for it in outcomes)
        assert [await it for it in bystanders] == [0.0, 1.0, 0.0][: len(bystanders)]
        assert await stack(5.0) == 5.0
        await stack.stop()
    assert backend.running == 0
    assert asyncio.all_tasks() == {kept}
    return is_over


@pytest.mark.parametrize("cut", [cancel, cancel_twice, cancel_every_task])
@pytest.mark.parametrize("layers", LAYERS)
def test_calls_cancelled_at_every_turn(layers, cut):
    """A call that is cancelled at any turn of the loop ends, and the stack continues to serve."""
    at_every_turn(cancelled, layers, cut)


async def started(loop, layers, turns, place):
    """Cancel a start, and check that a second start succeeds; return whether the first ended before its turn came."""
    stack = si.Stack(*LAYERS[layers](other()), clock=loop.clock)
    async with asyncio.timeout(PATIENCE_S):
        starting = asyncio.ensure_future(stack.start())
        loop.act_in(turns, place, starting.cancel)
        await asyncio.wait({starting})
        is_over = await loop.acted_too_late()
        if starting.cancelled():
            await stack.start()
        assert await stack(5.0) == 5.0
        await stack.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return is_over


@pytest.mark.parametrize("layers", ["batcher", "routes", "replicas", "everything"])
def test_starts_cancelled_at_every_turn(layers):
    """After a start that is cancelled at any turn of the loop, a second one succeeds."""
    at_every_turn(started, layers)


async def stopped(loop, layers, turns, place, drain):
    """Cancel a stop while calls are in flight, and check that each call ends and the stack can start again."""
    backend = ScriptedBackend(duration_s=0.010)
    stack = si.Stack(*LAYERS[layers](backend), clock=loop.clock)
    async with asyncio.timeout(PATIENCE_S):
        await stack.start()
        calls = [asyncio.ensure_future(stack(1.0)) for _ in range(3)]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(stack.stop(drain=drain))
        loop.act_in(turns, place, stopping.cancel)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.wait({stopping})
        is_over = await loop.acted_too_late()
        assert all(it == 1.0 or isinstance(it, si.Closed) for it in outcomes)
        await stack.stop()
        await stack.start()
        assert await stack(5.0) == 5.0
        await stack.stop()
    assert backend.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return is_over


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_stops_cancelled_at_every_turn(layers, drain):
    """Each call ends although the stop is cancelled, and the stack can start again."""
    at_every_turn(stopped, layers, drain)
