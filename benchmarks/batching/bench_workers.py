"""Callers in a closed loop, of one worker or several, beside a small greedy batcher, in real time.

    python benchmarks/run.py workers [--rounds 3] [--seconds 3]

The model sleeps in the threads of its workers, so that the machine's cores do not limit it. Greedy batching puts all
requests that return at once into one batch again, beside idle workers. The best that callers can reach is an even
split: as many rows in each worker's batch.

With one worker the best is one batch for all callers. Clients that begin one after the other are in two batches at
first, and stay in two behind a greedy batcher: while the batch of one half runs, the other half returns. Each client
pauses between a response and its next request, for a random time from half the round trip to one and a half.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from _lib.closed import answers_per_second
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si

CAP = 32
INPUT = np.zeros(4, np.float32)
Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Ask = Callable[[Any], Awaitable[Any]]
CASES = [(4, 24, 0.002, 0.002), (2, 12, 0.005, 0.002), (4, 64, 0.005, 0.001), (4, 24, 0.010, 0.0003)]
CLIENTS = [
    (16, 0.010, 0.0003, 0.001, ""),
    (16, 0.010, 0.0003, 0.001, ", on a device"),
    (8, 0.005, 0.001, 0.001, ""),
    (4, 0.010, 0.001, 0.003, ""),
    (16, 0.005, 0.001, 0.0, ""),
]
"""Clients, seconds of a batch and of a row, of the round trip, and whether the batcher shares a device."""
BEGIN_S = 0.004
"""Time from the first request of one client to that of the next one."""
OVER_GREEDY = Figure(
    "responses per second of callers in a closed loop, several workers",
    over="a small greedy batcher with as many workers",
    at_least=0.95,
)
OVER_SPLIT = Figure(
    "responses per second of callers in a closed loop, several workers, batches that cost by the row",
    over="an even split of the callers, calculated",
    at_least=0.8,
)

CLIENTS_OVER_GREEDY = Figure(
    "responses per second of clients in a closed loop, one worker", over="a small greedy batcher", at_least=1.05
)
OVER_ONE_BATCH = Figure(
    "responses per second of clients in a closed loop, one worker, of those that are possible",
    over="one batch for all after the longest round trip, calculated",
    at_least=0.75,
)


class Greedy:
    """The obvious batcher for several workers: a free worker takes all queued items, up to the largest batch."""

    def __init__(self, model: Any, workers: int) -> None:
        self.model = model
        self.free = workers
        self.items: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self.threads = ThreadPoolExecutor(workers)
        self.tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.items.append((item, future))
        loop.call_soon(self.dispatch)
        return await future

    def dispatch(self) -> None:
        while self.free and self.items:
            batch = [self.items.popleft() for _ in range(min(CAP, len(self.items)))]
            self.free -= 1
            task = asyncio.ensure_future(self.run(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def run(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        inputs = np.stack([item for item, _ in batch])
        outputs = await asyncio.get_running_loop().run_in_executor(self.threads, self.model, inputs)
        for (_, future), output in zip(batch, outputs, strict=True):
            future.set_result(output)
        self.free += 1
        self.dispatch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="per run")
    options = parser.parse_args()
    for workers, callers, setup_s, row_s in CASES:
        rounds = [measure(workers, callers, setup_s, row_s, options.seconds) for _ in range(options.rounds)]
        best = callers / (setup_s + row_s * -(-callers // workers))
        case = f"{workers} workers, {callers} callers, {1e3 * setup_s:g} ms and {1e3 * row_s:g} ms per row"
        ours = statistics.median(ours for ours, _ in rounds)
        note = f"ours {ours:,.0f}/s, greedy {statistics.median(greedy for _, greedy in rounds):,.0f}/s"
        OVER_GREEDY.report([ours / greedy for ours, greedy in rounds], case=case, note=note)
        if row_s * callers > setup_s * workers:
            OVER_SPLIT.report([ours / best for ours, _ in rounds], case=case, note=f"{best:,.0f}/s")
    for clients, setup_s, row_s, trip_s, where in CLIENTS:
        rounds = [
            measure_clients(clients, setup_s, row_s, trip_s, options.seconds, si.Device("shared") if where else None)
            for _ in range(options.rounds)
        ]
        best = clients / (1.5 * trip_s + setup_s + row_s * clients)
        costs = f"{1e3 * setup_s:g} ms and {1e3 * row_s:g} ms per row"
        case = f"{clients} clients, {costs}, round trip {1e3 * trip_s:g} ms{where}"
        ours = statistics.median(ours for ours, _ in rounds)
        note = f"ours {ours:,.0f}/s, greedy {statistics.median(greedy for _, greedy in rounds):,.0f}/s"
        CLIENTS_OVER_GREEDY.report([ours / greedy for ours, greedy in rounds], case=case, note=note)
        OVER_ONE_BATCH.report([ours / best for ours, _ in rounds], case=case, note=f"{best:,.0f}/s")


def measure(workers: int, callers: int, setup_s: float, row_s: float, seconds: float) -> tuple[float, float]:
    """Return the responses per second of our batcher and of the greedy one."""
    model = model_of(setup_s, row_s)

    def run(ask: Ask) -> Awaitable[float]:
        return answers_per_second(lambda _: ask(INPUT), callers, seconds)

    return asyncio.run(with_ours(model, workers, run)), asyncio.run(with_greedy(model, workers, run))


def measure_clients(
    clients: int, setup_s: float, row_s: float, trip_s: float, seconds: float, device: si.Device | None
) -> tuple[float, float]:
    """Return the responses per second of our batcher and of the greedy one."""
    model = model_of(setup_s, row_s)

    def run(ask: Ask) -> Awaitable[float]:
        trips = random.Random(1)

        async def call(number: int) -> None:
            await asyncio.sleep(number * BEGIN_S if number < clients else trip_s * trips.uniform(0.5, 1.5))
            await ask(INPUT)

        return answers_per_second(call, clients, seconds)

    return asyncio.run(with_ours(model, 1, run, device)), asyncio.run(with_greedy(model, 1, run))


def model_of(setup_s: float, row_s: float) -> Model:
    def model(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(setup_s + row_s * len(inputs))
        return inputs

    return model


async def with_ours(
    model: Model, workers: int, run: Callable[[Ask], Awaitable[float]], device: si.Device | None = None
) -> float:
    backend = si.CpuBackend(model, workers=workers, example=INPUT)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=CAP, device=device), backend) as service:
        return await run(service)


async def with_greedy(model: Model, workers: int, run: Callable[[Ask], Awaitable[float]]) -> float:
    batcher = Greedy(model, workers)
    rate = await run(batcher)
    batcher.threads.shutdown()
    return rate


if __name__ == "__main__":
    main()
