"""Callers in a closed loop of a model with several workers, beside a small greedy batcher, in real time.

    python benchmarks/run.py workers [--rounds 3] [--seconds 3]

The model sleeps in the threads of its workers, so that the machine's cores do not limit it. Greedy batching puts all
requests that return at once into one batch again, beside idle workers. The best that callers can reach is an even
split: as many rows in each worker's batch.
"""

import argparse
import asyncio
import statistics
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from _lib.closed import answers_per_second
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si

CAP = 32
INPUT = np.zeros(4, np.float32)
CASES = [(4, 24, 0.002, 0.002), (2, 12, 0.005, 0.002), (4, 64, 0.005, 0.001), (4, 24, 0.010, 0.0003)]
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


def measure(workers: int, callers: int, setup_s: float, row_s: float, seconds: float) -> tuple[float, float]:
    """Return the responses per second of our batcher and of the greedy one."""

    def model(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(setup_s + row_s * len(inputs))
        return inputs

    async def ours() -> float:
        backend = si.CpuBackend(model, workers=workers, example=INPUT)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=CAP), backend) as service:
            return await answers_per_second(lambda _: service(INPUT), callers, seconds)

    async def greedy() -> float:
        batcher = Greedy(model, workers)
        rate = await answers_per_second(lambda _: batcher(INPUT), callers, seconds)
        batcher.threads.shutdown()
        return rate

    return asyncio.run(ours()), asyncio.run(greedy())


if __name__ == "__main__":
    main()
