"""A route with a batcher and a breaker, which hangs again and again and soon regains all requests each time."""

import asyncio
import random

import numpy as np

import streaminfer as si
from streaminfer.resilience import CircuitBreaker
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import ScriptedBackend, run

LIMIT_NS = 150_000_000
HANGS, HANG_S, IN_A_ROW = 8, 0.6, 30


class Hanging:
    """Backend that responds after about 3.5 ms, and does not respond while it hangs."""

    def __init__(self):
        self.random = random.Random(1)
        self.flows = asyncio.Event()
        self.flows.set()

    async def infer(self, batch):
        rows = list(np.asarray(batch.inputs))
        await self.flows.wait()
        await asyncio.sleep(0.0035 * self.random.lognormvariate(0.0, 0.1))
        await self.flows.wait()
        return rows


async def hang_and_look(loop):
    """Return for each hang the seconds until 30 requests in a row got the response of the best route."""
    backend, arrivals = Hanging(), random.Random(2)
    breaker = CircuitBreaker(minimum_calls=4, window=8, open_s=0.2, max_open_s=0.4, half_open_calls=1, seed=1)
    router = FallbackRouter(
        Route("best", [si.AdaptiveBatcher(max_batch_size=16, slo_s=0.15), breaker, backend], quality=1.0, cost=2.0),
        Route("other", ScriptedBackend(duration_s=0.001), quality=0.5, cost=1.0, device="here"),
    )
    answers, recovered_s = [], []

    async def ask(service):
        request = si.Request(np.zeros(8, np.float32), deadline_ns=loop.now_ns + LIMIT_NS)
        try:
            answers.append((await service.call(request)).source)
        except si.DeadlineExceeded:  # the request waited for the best route until no time was left
            answers.append(None)

    async def load(service, tasks):
        while True:
            await asyncio.sleep(arrivals.expovariate(112.0))
            tasks.create_task(ask(service))

    async with si.Stack(router, clock=loop.clock) as service, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(load(service, tasks))
        for _ in range(HANGS):
            await asyncio.sleep(0.2)
            backend.flows.clear()
            await asyncio.sleep(HANG_S)
            backend.flows.set()
            mended_ns = loop.now_ns
            answers.clear()
            while len(answers) < IN_A_ROW or any(source != "best" for source in answers[-IN_A_ROW:]):
                await asyncio.sleep(0.01)
            recovered_s.append((loop.now_ns - mended_ns) / 1e9)
        running.cancel()
    return recovered_s


def test_hanging_route_regains_traffic_after_each_hang():
    """After each of several hangs, a route soon gets all requests again: in half of the cases within a second."""
    recovered_s = run(hang_and_look)
    assert len(recovered_s) == HANGS
    assert sorted(recovered_s)[HANGS // 2] < 1.0  # 30 requests themselves take a quarter of a second
