"""A restart that empties the cache: callers request three times the model's capacity until the cache is full again.

The model serves 200 requests a second; callers send 600 a second for a few hundred responses, which the cache has. At
second 3 the cache is emptied. Callers time out after 0.2 s and retry. The tests run in virtual time.
"""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

RATE, EMPTIED, UNTIL = 600.0, 3.0, 8.0


def goodput(answers, *, shared, policy):
    """Return the share of callers that got a response in the end, by the second in which they came.

    ``shared`` selects an `EdgeCache`, in which callers of one response share its computation, instead of a plain dict.
    """
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(1 / RATE, int(RATE * UNTIL)))
    wanted = rng.integers(0, answers, len(arrivals)).tolist()
    answered = np.zeros(len(arrivals), bool)

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=1, policy=policy, max_queue_size=10_000)
        layers = [batcher, ScriptedBackend(duration_s=0.005)]
        cache = si.EdgeCache() if shared else {}
        if shared:
            layers.insert(0, cache)
        async with si.Stack(*layers, clock=loop.clock) as service:

            async def one_try(key, **how):
                if shared:
                    return await service(float(key), **how)
                if key not in cache:
                    cache[key] = await service(float(key), **how)
                return cache[key]

            for key in range(answers):
                await one_try(key)
            start = loop.time()

            async def caller(number):
                for _ in range(5):
                    try:
                        await one_try(wanted[number], timeout_s=0.2)
                    except (si.DeadlineExceeded, si.Overloaded):
                        continue
                    answered[number] = True
                    return

            async def empty():
                await asyncio.sleep(EMPTIED)
                cache.clear()

            calls = [asyncio.ensure_future(empty())]
            for number, at in enumerate(arrivals):
                await asyncio.sleep(max(0.0, start + at - loop.time()))
                calls.append(asyncio.ensure_future(caller(number)))
            await asyncio.gather(*calls)

    run(main)
    second = arrivals.astype(int)
    return [answered[second == at].mean() for at in range(int(arrivals[-1]))]


def test_service_without_protection_stays_down():
    """Without protection against overload, the service stays down after its cache is emptied."""
    shares = goodput(300, shared=False, policy="greedy")
    assert min(shares[:3]) == 1.0
    assert max(shares[4:]) < 0.4


def test_callers_that_share_flights_refill_the_cache():
    """Callers that share computations refill the emptied cache."""
    shares = goodput(300, shared=True, policy="greedy")
    assert min(shares[5:]) >= 0.99


@pytest.mark.parametrize("shared", [True, False])
def test_planner_fills_a_cold_cache_under_overload(shared):
    """The planner refills a cache of more responses than shared computations alone can restore.

    A greedy policy serves requests until all responses are late, and late responses are not stored."""
    assert max(goodput(800, shared=True, policy="greedy")[4:]) < 0.4
    shares = goodput(800, shared=shared, policy="lookahead")
    assert min(shares[6:]) >= 0.99
