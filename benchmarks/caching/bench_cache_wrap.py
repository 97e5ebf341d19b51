"""EdgeCache.wrap: cost of a hit beside a bare await, and a stampede: ``python benchmarks/run.py cache_wrap``.

The bare await and the hits run in alternation in the same run; hashing the argument is part of a hit. The stampede runs
on a real event loop: a thousand tasks request one cold key with a computation of 50 ms.
"""

import asyncio
import time
from typing import Any

import numpy as np
from _lib.figures import Figure

from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.request import Request, Response

CALLS = 500
ROUNDS = 400
CALLERS = 1_000
COMPUTATION_S = 0.05
ANSWER = np.zeros(10, np.float32)
HIT = Figure("hit of a function that `EdgeCache` wraps, array of 4 KB", over="a bare await", form="{:.1f}×", at_most=8)
HIT_CPU = Figure("CPU of a hit of a function that `EdgeCache` wraps, array of 4 KB", form="{:.2f} µs", at_most=1)
STAMPEDE = Figure(
    "wait of the last of 1,000 callers of one cold key beyond the computation", form="{:.1f} %", at_most=10
)


async def bare(_: Any) -> Any:
    return ANSWER


class Service:
    fingerprint = "service"

    async def call(self, _: Request) -> Response:
        return Response(ANSWER)


async def hits() -> None:
    cache = EdgeCache(maxsize=100_000, ttl_s=300)
    cached = cache.wrap(bare)
    service = cache.wrap(Service())
    array = np.random.default_rng(0).random(1024, np.float32)
    request = Request(array)
    asked = {
        "bare await": (bare, array),
        "4 KB array": (cached, array),
        "150 KB array": (cached, np.zeros((224, 224, 3), np.uint8)),
        "string": (cached, "what is in this picture?"),
        "number": (cached, 7),
        "service, bare": (Service().call, request),
        "service, 4 KB array": (service.call, request),
    }
    best = dict.fromkeys(asked, float("inf"))
    processor = dict.fromkeys(asked, float("inf"))
    for function, argument in asked.values():
        await function(argument)
    for _ in range(ROUNDS):
        for name, (function, argument) in asked.items():
            calls = CALLS if "150" not in name else CALLS // 10
            spent = time.process_time_ns()
            started = time.perf_counter_ns()
            for _ in range(calls):
                await function(argument)
            best[name] = min(best[name], (time.perf_counter_ns() - started) / calls)
            processor[name] = min(processor[name], (time.process_time_ns() - spent) / calls)
    assert cache.statistics().misses == 5
    print("a hit, ns (CPU ns), over the bare await; keys are made of the arguments, hashing included")
    for name, took in best.items():
        base = best["service, bare" if name.startswith("service") else "bare await"]
        print(f"  {name:<22}{took:8.0f} ({processor[name]:6.0f}) {took / base:6.1f}x")
    HIT.report(best["4 KB array"] / best["bare await"])
    HIT_CPU.report(processor["4 KB array"] / 1e3)


async def stampede() -> tuple[int, float, float]:
    cache = EdgeCache()
    computed = 0
    ends: list[float] = []
    took = 0.0

    async def compute(_: Any) -> Any:
        nonlocal computed, took
        computed += 1
        started = time.perf_counter()
        await asyncio.sleep(COMPUTATION_S)
        took = time.perf_counter() - started
        return ANSWER

    cached = cache.wrap(compute)
    key = np.zeros(1024, np.float32)

    async def caller() -> None:
        started = time.perf_counter()
        await cached(key)
        ends.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return computed, took, max(ends)


def main() -> None:
    asyncio.run(hits())
    computed, took, latest = min((asyncio.run(stampede()) for _ in range(5)), key=lambda each: each[2])
    assert computed == 1
    print(f"{CALLERS} callers of one cold key: 1 computation of {took * 1e3:.1f} ms", end=", ")
    print(f"the slowest caller waited {latest * 1e3:.1f} ms")
    STAMPEDE.report(100 * (latest / took - 1))


if __name__ == "__main__":
    main()
