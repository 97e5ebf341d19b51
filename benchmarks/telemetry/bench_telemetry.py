"""All telemetry on: its CPU per request, its growth in memory, and the error of a rolling p99.

    python benchmarks/run.py telemetry [--rounds 9]

The stack has a batcher of 64 rows around a no-op function. Variants are measured in turn in each round; the benchmark
prints the median over the rounds of the difference within a round. "All" is the latency and its parts, an objective, a
rolling histogram, and a cost meter; "exporters attached" adds the `/metrics` app, the event log, the OpenTelemetry
exporter and the live page, without reading any of them; "with tenant and stream" adds these names to each request.
"""

import argparse
import asyncio
import gc
import statistics
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from _lib.figures import Figure
from _lib.floor import cpu_per_request, no_op
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

import streaminfer as si
from streaminfer.telemetry import EventLog, StackMetricExporter
from streaminfer.testing import FakeClock

REQUESTS = 64 * 400
ADDED = Figure("CPU that all telemetry adds to a request, 64 callers", form="{:.2f} µs", at_most=1)
ADDED_ALONE = Figure("CPU that all telemetry adds to a request, 1 caller, so batches of one", form="{:.2f} µs")
# one block per hundred requests; if requests kept memory, there would be at least one block per request
BLOCKS = Figure("memory blocks that a request with all telemetry leaves behind", form="{:.4f}", at_most=0.01)
BATCHES_KEPT = 2_500  # more than a batcher's event ring keeps, so that new records replace old ones
ROLLING = Figure("rolling p99 of 60 s outside the exact one, within a slice of 1 s", form="{:.2f} %", at_most=0.3)


def recorded() -> list[Any]:
    return [si.Telemetry("bench")]


def promised() -> list[Any]:
    return [si.Telemetry("bench", slo=si.SLO("bench", threshold_s=0.05), recent=si.RollingHistogram())]


def labeled() -> list[Any]:
    return [si.Telemetry("bench", labels=("tenant", "route"))]


def metered() -> list[Any]:
    return [si.CostMeter(per_second=1.0)]


VARIANTS: dict[str, Callable[[], list[Any]]] = {
    "telemetry": recorded,
    "telemetry, by tenant and route": labeled,
    "telemetry, SLO, rolling": promised,
    "cost meter": metered,
    "all": lambda: [*promised(), *metered()],
}


def stack(layers: list[Any]) -> si.Stack:
    batcher = si.AdaptiveBatcher(max_batch_size=64, stack=False, slo_s=1.0)
    return si.Stack(*layers, batcher, si.CpuBackend(no_op, executor="inline"))


def attach(service: si.Stack) -> list[Any]:
    apps = [si.telemetry.metrics_app(service), si.telemetry.dashboard(service)]
    return [*apps, EventLog(service), StackMetricExporter(ConsoleMetricExporter(), service)]


async def cost(layers: list[Any], callers: int, *, labelled: bool = False, attached: bool = False) -> float:
    async with stack(layers) as service:
        exporters = attach(service) if attached else []

        async def call(item: Any) -> Any:
            return await service(item, tenant="a", stream_id="b") if labelled else await service(item)

        gc.collect()
        seconds = await cpu_per_request(call, callers, REQUESTS)
        del exporters
        return seconds


async def left_in_memory(layers: list[Any]) -> float:
    """Return the memory blocks that are left after the requests, per request."""
    async with stack(layers) as service:

        async def caller(requests: int) -> None:
            for _ in range(requests):
                await service(1.0)

        await asyncio.gather(*(caller(BATCHES_KEPT) for _ in range(64)))
        gc.collect()
        before = sys.getallocatedblocks()
        await asyncio.gather(*(caller(800) for _ in range(64)))
        gc.collect()
        return (sys.getallocatedblocks() - before) / (64 * 800)


def bench_cpu(rounds: int) -> bool:
    is_met = True
    for callers in (64, 1):
        names = (*VARIANTS, "all, exporters attached", "all, with tenant and stream")
        added: dict[str, list[float]] = {name: [] for name in names}
        bare = []
        for _ in range(rounds):
            floor = asyncio.run(cost([], callers))
            bare.append(floor)
            for name, make in VARIANTS.items():
                added[name].append(asyncio.run(cost(make(), callers)) - floor)
            everything = asyncio.run(cost(VARIANTS["all"](), callers, attached=True))
            added["all, exporters attached"].append(everything - floor)
            floor_labelled = asyncio.run(cost([], callers, labelled=True))
            labelled = asyncio.run(cost(VARIANTS["all"](), callers, labelled=True))
            added["all, with tenant and stream"].append(labelled - floor_labelled)
        print(f"\n{callers} callers; without telemetry {statistics.median(bare) * 1e6:.2f} µs a request; added, ns")
        for name, seconds in added.items():
            low, high = min(seconds), max(seconds)
            print(f"  {name:<30}{statistics.median(seconds) * 1e9:8.0f}   ({low * 1e9:.0f} to {high * 1e9:.0f})")
        figure = ADDED if callers > 1 else ADDED_ALONE
        meter = statistics.median(added["cost meter"]) * 1e6
        all_us = [seconds * 1e6 for seconds in added["all, exporters attached"]]
        is_met &= figure.report(all_us, note=f"a cost meter alone {meter:.2f} µs")
    return is_met


def bench_rolling() -> bool:
    """Report the error of a rolling p99 while the latencies double and halve.

    The exact values are the p99s of the window and of windows that are up to one slice shorter.
    """
    clock, rng = FakeClock(), np.random.default_rng(1)
    rolling = si.RollingHistogram(window_s=60.0, slices=60, clock=clock)
    kept: deque[tuple[float, float]] = deque()
    now_s, worst = 0.0, 0.0
    for step in range(60_000):
        clock.advance(0.005)
        now_s += 0.005
        latency_s = float(rng.lognormal(-4.0, 0.5)) * (2.0 if step % 20_000 > 10_000 else 1.0)
        rolling.record(latency_s)
        kept.append((now_s, latency_s))
        while kept[0][0] <= now_s - 60.0:
            kept.popleft()
        if step % 500 == 499:
            whole = np.array([latency for _, latency in kept])
            since = np.array([at_s for at_s, _ in kept])
            windows = (whole[since > now_s - seconds] for seconds in np.linspace(59.0, 60.0, 21))
            exact = [float(np.quantile(window, 0.99, method="inverted_cdf")) for window in windows]
            ours = rolling.quantile(0.99)
            worst = max(worst, ours / max(exact) - 1.0, 1.0 - ours / min(exact))
    return ROLLING.report(100 * worst)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    is_met = bench_cpu(rounds)
    left = {name: asyncio.run(left_in_memory(layers)) for name, layers in (("none", []), ("all", VARIANTS["all"]()))}
    is_met &= BLOCKS.report(left["all"], note=f"{left['none']:.4f} without telemetry")
    is_met &= bench_rolling()
    return not is_met


if __name__ == "__main__":
    sys.exit(main())
