"""CPU for each request through `AdaptiveBatcher` and a whole `Stack`, over a minimal asyncio batcher in the same run.

Each round measures every variant once, in turn. The benchmark prints the median of the ratios within rounds, so that
another process on the machine disturbs one round and not one variant.

    python benchmarks/run.py batching [--rounds 9]
"""

import argparse
import asyncio
import gc
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from _lib.figures import Figure
from _lib.floor import MinimalBatcher, cpu_per_request, no_op

import streaminfer as si

BATCH = 64
REQUESTS = {1: 6_000, 64: 40 * 64 * 8, 1024: 20 * 1024}
FULL = Figure("CPU per request of a batcher around a no-op", over="a minimal asyncio batcher", at_most=1.6)
ALONE = Figure("CPU per request of a batcher around a no-op, one caller", over="a minimal asyncio batcher", at_most=1.5)
STACK = Figure(
    "CPU per request of telemetry, batcher and inline backend, 64 callers",
    over="a minimal asyncio batcher",
    at_most=2.2,
)
JUDGED = {
    ("batcher, lists", 64): (FULL, "64 callers, lists"),
    ("batcher, arrays", 64): (FULL, "64 callers, arrays"),
    ("batcher, lists, SLO", 64): (FULL, "64 callers, lists, SLO"),
    ("batcher, lists", 1024): (FULL, "1,024 callers, lists"),
    ("batcher, arrays", 1024): (FULL, "1,024 callers, arrays"),
    ("batcher, lists, SLO", 1024): (FULL, "1,024 callers, lists, SLO"),
    ("batcher, lists", 1): (ALONE, "lists"),
    ("batcher, arrays", 1): (ALONE, "arrays"),
    ("batcher, lists, SLO", 1): (ALONE, "lists, SLO"),
    ("stack, lists", 64): (STACK, "lists"),
    ("stack, arrays", 64): (STACK, "arrays"),
}
"""Figure and case of each judged pair of variant and number of callers, on asyncio's own loop."""

Call = Callable[[Any], Awaitable[Any]]


@asynccontextmanager
async def minimal() -> AsyncIterator[Call]:
    yield MinimalBatcher(no_op, BATCH)


def batcher(**options: Any) -> Callable[[], Any]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Call]:
        yield si.AdaptiveBatcher(max_batch_size=BATCH, max_queue_size=4096, **options).wrap(no_op)

    return make


def stack(**options: Any) -> Callable[[], Any]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Call]:
        layers = (
            si.Telemetry("bench"),
            si.AdaptiveBatcher(max_batch_size=BATCH, **options),
            si.CpuBackend(no_op, executor="inline"),
        )
        async with si.Stack(*layers) as service:
            yield service

    return make


VARIANTS: dict[str, Callable[[], Any]] = {
    "minimal": minimal,
    "batcher, lists": batcher(stack=False),
    "batcher, arrays": batcher(),
    "batcher, lists, SLO": batcher(stack=False, slo_s=0.05),
    "stack, lists": stack(stack=False),
    "stack, arrays": stack(),
    "stack, arrays, SLO": stack(slo_s=0.05),
}


async def measure(make: Callable[[], Any], callers: int) -> float:
    async with make() as call:
        gc.collect()
        return await cpu_per_request(call, callers, REQUESTS[callers])


def table(title: str, run: Callable[[Any], float], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Print a table; return the ratios to the minimal batcher, by variant and number of callers."""
    print(f"\n{title}\n{'':22}" + "".join(f"{callers:>7} callers  " for callers in REQUESTS))
    rows: dict[str, list[str]] = {name: [] for name in VARIANTS}
    ratios: dict[tuple[str, int], list[float]] = {}
    for callers in REQUESTS:
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name, make in VARIANTS.items():
                seconds[name].append(run(measure(make, callers)))
        for name, values in seconds.items():
            found = [ours / floor for ours, floor in zip(values, seconds["minimal"], strict=True)]
            rows[name].append(f"{statistics.median(values) * 1e6:6.2f} {statistics.median(found):5.2f}×     ")
            ratios[name, callers] = found
    for name, cells in rows.items():
        print(f"{name:22}" + "".join(cells))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    si.warmup()
    gc.collect()
    gc.freeze()  # full collections of the benchmark's own objects are not what is measured
    print("CPU µs for each request, and times the minimal batcher's; no-op batch function, up to 64 a batch")
    ratios = table("asyncio's own loop", asyncio.run, rounds)
    table("uvloop", uvloop.run, max(3, rounds // 3))
    print()
    for variant, (figure, case) in JUDGED.items():
        figure.report(ratios[variant], case=case)


if __name__ == "__main__":
    main()
