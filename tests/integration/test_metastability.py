"""Overload that lasts longer than its cause: retry storms, with and without protection.

The service can serve 200 requests a second and gets 160. For two seconds it is five times slower. Callers time out
after 0.2 s and retry. The last test checks a planner after an outage if callers do not retry. All run in virtual time.
"""

import asyncio
import math
import random

import numpy as np
import pytest

import streaminfer as si
from streaminfer.resilience import ConcurrencyLimit, RetryBudget
from streaminfer.testing import ScriptedBackend, run

RATE, SLOW_FROM, SLOW_UNTIL, UNTIL = 160.0, 2.0, 4.0, 12.0


def goodput(policy="greedy", retries="naive", limit=None):
    """Return the share of callers that got a response, by the second of their arrival, and the attempts per caller."""
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(1 / RATE, int(RATE * UNTIL)))
    answered = np.zeros(len(arrivals), bool)
    asked = [0]

    async def main(loop):
        device = ScriptedBackend(duration_s=lambda n: 0.005 * n * (5 if SLOW_FROM <= loop.time() < SLOW_UNTIL else 1))
        layers = [si.AdaptiveBatcher(max_batch_size=1, policy=policy, max_queue_size=10_000), device]
        if limit is not None:
            layers.insert(0, limit)
        async with si.Stack(*layers, clock=loop.clock) as service:

            async def one_try():
                asked[0] += 1
                return await service(1.0, timeout_s=0.2)

            rejections = (si.DeadlineExceeded, si.Overloaded)
            if retries == "budget":
                ask = RetryBudget(max_attempts=5, ratio=0.1, retryable=rejections, clock=loop.clock).wrap(one_try)
            else:

                async def ask():
                    for _ in range(4):
                        try:
                            return await one_try()
                        except rejections:
                            pass
                    return await one_try()

            async def caller(number):
                try:
                    await ask()
                except rejections:
                    return
                answered[number] = True

            calls = []
            for number, at in enumerate(arrivals):
                await asyncio.sleep(max(0.0, at - loop.time()))
                calls.append(asyncio.ensure_future(caller(number)))
            await asyncio.gather(*calls)

    run(main)
    second = arrivals.astype(int)
    shares = [answered[second == at].mean() for at in range(int(arrivals[-1]))]
    return shares, asked[0] / len(arrivals)


def test_retry_storm_without_budget_outlives_its_cause():
    """Without a retry budget, a storm of retries outlives its cause."""
    shares, amplification = goodput(retries="naive")
    assert min(shares[:2]) >= 0.99
    assert max(shares[8:]) < 0.8  # eight seconds of calm do not help
    assert amplification > 2


def test_service_with_retry_budget_recovers():
    """With a retry budget, the service recovers once the cause of the overload is gone."""
    shares, amplification = goodput(retries="budget")
    assert min(shares[:2]) >= 0.99
    assert min(shares[6:]) >= 0.99
    assert amplification <= 1.15


@pytest.mark.parametrize("how", ["planner", "limit"])
def test_early_rejection_ends_a_retry_storm(how):
    """Callers that are rejected at once cost the device nothing, so it serves the callers that can be on time."""
    if how == "planner":
        shares, _ = goodput(policy="lookahead", retries="naive")
    else:
        shares, _ = goodput(retries="naive", limit=ConcurrencyLimit(limit=20))
    assert min(shares[7:]) >= 0.95


def on_time_after_an_outage(setup_s, per_item_s, max_batch_size, slo_s, load, lasts, *, factor, seed):
    """Return the share on time of requests that arrive at least twenty full batches after an outage of ``lasts``."""
    full_s = setup_s + per_item_s * max_batch_size
    rate = load * max_batch_size / full_s
    slow_from_s = 120 * full_s
    slow_until_s = slow_from_s + lasts * full_s
    noise = random.Random(seed)
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * (slow_until_s + 120 * full_s))))
    completed_s = np.full(len(arrivals), math.inf)

    async def main(loop):
        def duration_s(size):
            slower = factor if slow_from_s <= loop.time() < slow_until_s else 1.0
            return (setup_s + per_item_s * size) * slower * math.exp(noise.gauss(0.0, 0.05))

        batcher = si.AdaptiveBatcher(max_batch_size=max_batch_size, slo_s=slo_s, max_queue_size=10_000)
        async with si.Stack(batcher, ScriptedBackend(duration_s=duration_s), clock=loop.clock) as service:

            async def ask(number):
                try:
                    await service(1.0)
                except (si.DeadlineExceeded, si.Overloaded):
                    return
                completed_s[number] = loop.time()

            calls = []
            for number, at in enumerate(arrivals.tolist()):
                await asyncio.sleep(max(0.0, at - loop.time()))
                calls.append(asyncio.ensure_future(ask(number)))
            await asyncio.gather(*calls)

    run(main)
    after = arrivals >= slow_until_s + 20 * full_s
    return (completed_s - arrivals <= slo_s)[after].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [3.0, 6.0])
@pytest.mark.parametrize(
    "service",
    [(0.004, 0.00004, 64, 0.010, 0.5, 20), (0.008, 0.00024, 32, 0.025, 0.5, 10), (0.008, 0.00048, 16, 0.025, 0.7, 20)],
    ids=["batches are nearly free", "half busy", "busy"],
)
def test_outage_does_not_bias_learned_durations(service, factor, seed):
    """An outage, which has time for small batches only, makes neither small batches seem cheap nor large ones slow."""
    without = on_time_after_an_outage(*service, factor=1.0, seed=seed)
    assert on_time_after_an_outage(*service, factor=factor, seed=seed) >= without - 0.03
