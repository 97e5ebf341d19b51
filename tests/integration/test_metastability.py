"""What keeps a service down after the cause has gone: retry storms, with and without what is there against them.

The service can do 200 a second and gets 160. For two seconds it is five times slower. Callers give up after 0.2 s and
ask again. In virtual time.
"""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.resilience import ConcurrencyLimit, RetryBudget
from streaminfer.testing import ScriptedBackend, run

RATE, SLOW_FROM, SLOW_UNTIL, UNTIL = 160.0, 2.0, 4.0, 12.0


def goodput(policy="greedy", retries="naive", limit=None):
    """The share of callers that were answered in the end, of those that came in each second."""
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

            refusals = (si.DeadlineExceeded, si.Overloaded)
            if retries == "budget":
                ask = RetryBudget(max_attempts=5, ratio=0.1, retryable=refusals, clock=loop.clock).wrap(one_try)
            else:

                async def ask():
                    for _ in range(4):
                        try:
                            return await one_try()
                        except refusals:
                            pass
                    return await one_try()

            async def caller(number):
                try:
                    await ask()
                except refusals:
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


def test_without_a_budget_a_storm_of_retries_outlives_its_cause():
    shares, amplification = goodput(retries="naive")
    assert min(shares[:2]) >= 0.99
    assert max(shares[8:]) < 0.8  # eight seconds of calm do not help
    assert amplification > 2


def test_with_a_budget_the_service_recovers_when_its_cause_has_gone():
    shares, amplification = goodput(retries="budget")
    assert min(shares[:2]) >= 0.99
    assert min(shares[6:]) >= 0.99
    assert amplification <= 1.15


@pytest.mark.parametrize("how", ["planner", "limit"])
def test_refusing_early_ends_the_storm_too(how):
    """Callers that are turned away at once cost the device nothing: it goes on with those that can be on time."""
    if how == "planner":
        shares, _ = goodput(policy="lookahead", retries="naive")
    else:
        shares, _ = goodput(retries="naive", limit=ConcurrencyLimit(limit=20))
    assert min(shares[7:]) >= 0.95
