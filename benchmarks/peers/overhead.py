"""CPU per request through the peers' batchers over the same minimal batcher, in one process; run by benchmarks/run.py.

Each peer has the settings under which a no-op batch function waits for nothing, up to 64 a batch.
"""

import asyncio
import gc
import importlib.metadata
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from floor import MinimalBatcher, cpu_per_request, no_op

BATCH = 64
REQUESTS = {1: 2_000, 64: 64 * 60, 1024: 4 * 1024}
ROUNDS = 5


async def minimal():
    return MinimalBatcher(no_op, BATCH), None


async def async_batcher():
    from async_batcher.batcher import AsyncBatcher

    class NoOp(AsyncBatcher):
        async def process_batch(self, batch):
            return batch

    batcher = NoOp(max_batch_size=BATCH, max_queue_time=0.0)
    return batcher.process, batcher.stop


async def batched_aio():
    from batched import aio

    batcher = aio.dynamically(batch_size=BATCH, timeout_ms=0.1)(_async_no_op)
    return batcher, None


async def _async_no_op(items):
    return items


async def bentoml_cork():
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    dispatcher = CorkDispatcher(
        max_latency_in_ms=60_000, max_batch_size=BATCH, fallback=lambda: None, get_batch_size=lambda _: 1
    )
    return dispatcher(_async_no_op), dispatcher.shutdown


PEERS = {
    "minimal": minimal,
    "BentoML CorkDispatcher": bentoml_cork,
    "async-batcher": async_batcher,
    "batched.aio": batched_aio,
}


async def measure(make, callers):
    call, stop = await make()
    try:
        gc.collect()
        return await cpu_per_request(call, callers, REQUESTS[callers])
    finally:
        if stop is not None:
            result = stop()
            if asyncio.iscoroutine(result):
                await result


def main():
    for package in ("bentoml", "async-batcher", "batched"):
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
