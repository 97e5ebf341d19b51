"""CPU per request through the peers' batchers over the same minimal batcher, in one process; run by benchmarks/run.py.

Each peer has settings with which a no-op batch function never waits, and up to 64 items per batch.
"""

import asyncio
import gc
import importlib.metadata
import statistics
from functools import partial

from _lib.floor import MinimalBatcher, cpu_per_request, no_op
from batchers import async_batcher, batched_aio, bentoml_cork, ray_serve_batch, smartbatch

BATCH = 64
REQUESTS = {1: 2_000, 64: 64 * 60, 1024: 4 * 1024}
ROUNDS = 5


async def async_no_op(items):
    return items


def minimal():
    return MinimalBatcher(no_op, BATCH), None


PEERS = {
    "minimal": minimal,
    "BentoML CorkDispatcher": partial(bentoml_cork, async_no_op, max_batch_size=BATCH),
    "async-batcher": partial(async_batcher, async_no_op, max_batch_size=BATCH, max_queue_time=0.0),
    "batched.aio": partial(batched_aio, async_no_op, batch_size=BATCH, timeout_ms=0.1),
    "Ray serve.batch": partial(ray_serve_batch, async_no_op, max_batch_size=BATCH, batch_wait_timeout_s=0.0),
    "smartbatch": partial(smartbatch, async_no_op, max_batch_size=BATCH, max_wait_time=0.0, max_queue_size=2048),
}


async def measure(make, callers):
    call, stop = make()
    try:
        gc.collect()
        return await cpu_per_request(call, callers, REQUESTS[callers])
    finally:
        if stop is not None:
            result = stop()
            if asyncio.iscoroutine(result):
                await result


def main():
    for package in ("bentoml", "async-batcher", "batched", "ray", "smartbatch"):
        print(f"  {package} {importlib.metadata.version(package)}", end="")
    print(f"\n{'':26}" + "".join(f"{callers:>7} callers " for callers in REQUESTS))
    for name, make in PEERS.items():
        cells = []
        for callers in REQUESTS:
            ratios, seconds = [], []
            for _ in range(ROUNDS):
                floor = asyncio.run(measure(minimal, callers))
                own = asyncio.run(measure(make, callers))
                seconds.append(own)
                ratios.append(own / floor)
            cells.append(f"{statistics.median(seconds) * 1e6:7.2f} {statistics.median(ratios):5.2f}× ")
        print(f"{name:26}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
