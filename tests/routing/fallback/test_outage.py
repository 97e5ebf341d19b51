"""An outage of the best route, in virtual time, at several rates: few requests are lost, and the route soon returns."""

import asyncio
import random

import numpy as np
import pytest

import streaminfer as si
from streaminfer.routing import FallbackRouter, Route
from streaminfer.telemetry import BurnSignal
from streaminfer.testing import run


class Backend:
    """Backend that responds in about a millisecond, and fails or hangs while it is down."""

    def __init__(self, *, hangs):
        self.hangs = hangs
        self.up = asyncio.Event()
        self.up.set()

    async def infer(self, batch):
        if not self.up.is_set():
            if not self.hangs:
                raise ConnectionError("down")
            await self.up.wait()
        await asyncio.sleep(0.001 + 0.0001 * len(batch))
        return [1.0] * len(batch)


def outage(rate, *, hangs, down_requests):
    """Send evenly spaced requests in an outage and after it; return the sources of the responses, "" for an error."""

    async def main(loop):
        best = Backend(hangs=hangs)
        router = FallbackRouter(
            Route("best", [si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1), best], device="a"),
            Route(
                "other",
                [si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1), Backend(hangs=False)],
                quality=0.8,
                device="b",
            ),
        )

        async def ask(service):
            try:
                return (await service.call(si.Request(1.0, deadline_ns=loop.now_ns + 100_000_000))).source.split(" ")[0]
            except si.StreamInferError:
                return ""

        async def load(service, requests):
            asked = []
            for _ in range(requests):
                asked.append(asyncio.ensure_future(ask(service)))
                await asyncio.sleep(1 / rate)
            return asked

        async with si.Stack(router, clock=loop.clock) as service:
            await asyncio.gather(*await load(service, max(round(2 * rate), 12)))
            best.up.clear()
            during = await load(service, down_requests)
            best.up.set()
            after = await load(service, max(round(11 * rate), 6))
            return await asyncio.gather(*during), await asyncio.gather(*after)

    return run(main)


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
@pytest.mark.parametrize("rate", [1 / 60, 0.3, 2.0, 30.0, 1000.0])
def test_traffic_returns_after_ten_seconds(rate, hangs):
    """The best route has all requests again after ten seconds, or after three requests if those take longer.

    Time, and not the number of requests, decides how soon a route has its whole share again.
    """
    _, after = outage(rate, hangs=hangs, down_requests=min(max(round(10 * rate), 12), 2000))

    assert set(after[max(round(10 * rate), 3) :]) == {"best"}


def test_a_hang_leaves_the_next_route_its_time():
    """The router interrupts attempts at a hanging route early, so at most 0.2 % of the requests get no response."""
    during, _ = outage(1000.0, hangs=True, down_requests=2000)

    assert during.count("") <= 0.002 * len(during)


@pytest.mark.parametrize("default", [None, -1.0], ids=["no default", "default"])
@pytest.mark.parametrize("devices", ["aa", "ab"], ids=["one device", "two devices"])
@pytest.mark.parametrize("burns", [True, False], ids=["slo", "no slo"])
@pytest.mark.parametrize("layers", [True, False], ids=["batcher", "plain"])
def test_hanging_fallback_costs_best_route_nothing(layers, burns, devices, default):
    """After a second in which both routes hang, the best one, which responds again, gets all requests."""

    async def main(loop):
        best, other = Backend(hangs=True), Backend(hangs=True)
        other.up.clear()

        def around(backend):
            return [si.AdaptiveBatcher(max_batch_size=16), backend] if layers else [backend]

        slo = si.SLO("s", threshold_s=0.1, objective=0.99, signal=BurnSignal(window_s=5.0)) if burns else None
        router = FallbackRouter(
            Route("best", around(best), cost=4.0, device=devices[0]),
            Route("other", around(other), quality=0.8, cost=1.0, device=devices[1]),
            default=default,
            slo=slo,
        )
        ends = []

        async def ask(service):
            try:
                response = await service.call(si.Request(1.0, deadline_ns=loop.now_ns + 100_000_000))
                ends.append(response.source.split(" ")[0])
            except si.StreamInferError:
                ends.append("")

        async def load(service, seconds):
            ends.clear()
            tasks = []
            for _ in range(200 * seconds):
                tasks.append(asyncio.ensure_future(ask(service)))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
            return ends.count("best") / len(ends)

        async with si.Stack(si.Telemetry("t", slo=slo), router, clock=loop.clock) as service:
            await load(service, 2)
            best.up.clear()
            await load(service, 1)
            best.up.set()
            await load(service, 6)
            return await load(service, 5)

    assert run(main) == 1.0


def test_few_failed_batches_cost_no_other_traffic():
    """If one batch in twenty fails, the best route loses less than 12 % of the requests for other reasons.

    The requests of a batch fail together, and chance explains this more often than as many single failures.
    """

    class Failing:
        def __init__(self, seed):
            self.draw = random.Random(seed)

        async def infer(self, batch):
            await asyncio.sleep(0.020 + 0.001 * len(batch))
            if self.draw.random() < 0.05:
                raise ConnectionError("reset")
            return [1.0] * len(batch)

    async def main(loop, seed):
        router = FallbackRouter(
            Route("best", [si.AdaptiveBatcher(max_batch_size=32, slo_s=0.2), Failing(seed)], device="a"),
            Route("other", Backend(hangs=False), quality=0.8, device="b"),
        )
        async with si.Stack(router, clock=loop.clock) as service:
            asked = []
            for _ in range(6000):
                asked.append(asyncio.ensure_future(service.call(si.Request(1.0))))
                await asyncio.sleep(1 / 300)
            responses = await asyncio.gather(*asked)
        return sum(response.source == "other (best: share)" for response in responses) / len(responses)

    assert np.mean([run(lambda loop, seed=seed: main(loop, seed)) for seed in range(1, 5)]) < 0.12
