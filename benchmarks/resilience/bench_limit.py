"""ConcurrencyLimit, RetryBudget, Hedge: cost of each per service call: ``python benchmarks/run.py limit``.

The bare call of a service and the calls through a layer alternate in the same run. The service responds at once, with
the timings of a batcher, so that the limit learns from every response. No call waits, so no event loop is involved,
except for ``Hedge``, which runs each request in a separate task. The rejections of an adaptive limit are measured on a
virtual clock and need no quiet machine: ``python benchmarks/run.py limit learning``.
"""

import asyncio
import functools
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from _lib.figures import Figure
from _lib.guarded_calls import CALLS, least_ns

import streaminfer as si
from streaminfer.request import Request, Response, Timings
from streaminfer.resilience.hedge.hedging import Hedge
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.resilience.retry.retry_budget import RetryBudget
from streaminfer.testing import VirtualLoop, run

ADDED = Figure("time that `ConcurrencyLimit` adds to a request", form="{:.2f} µs", at_most=0.5)
TAIL = Figure("p99.9 with `Hedge`, 2 % of the responses 10× slower", over="p99.9 without", at_most=0.25)
EXTRA = Figure("extra load of `Hedge`, 2 % of the responses 10× slower", form="{:.1f} %", at_most=3)
REJECTED = Figure("requests that an adaptive limit rejects where none waits", form="{:.0f}", at_most=0)
SERVED = Figure(
    "requests that an adaptive limit serves, ten workers at 0.9 of capacity",
    over="the best fixed limit",
    form="{:.3f}×",
    at_least=0.97,
)


class Service:
    """Service that responds at once, and reports one worker, like a batcher."""

    max_in_flight = 1

    def __init__(self) -> None:
        now_ns = time.monotonic_ns()
        self._response = Response(1.0, False, "bare", Timings(now_ns, now_ns + 1000, now_ns + 2000, now_ns + 3000, 1))

    async def call(self, _: Request) -> Response:
        return self._response


def awaits_of(service: Any, request: Request) -> Callable[[], None]:
    async def main() -> None:
        call = service.call
        for _ in range(CALLS):
            await call(request)

    def run() -> None:
        try:
            main().send(None)
        except StopIteration:
            return
        raise RuntimeError("it waited for something")

    return run


def hedged_us(rounds: int = 200) -> tuple[float, float]:
    """Return microseconds per bare and per hedged request on an event loop, the least of many alternating rounds."""

    async def main() -> tuple[float, float]:
        request = Request(1.0)
        bare, hedged = Service(), Hedge().wrap(Service())
        best = {"bare": float("inf"), "hedged": float("inf")}
        for _ in range(100):
            await hedged.call(request)
        for _ in range(rounds):
            for name, service in (("bare", bare), ("hedged", hedged)):
                started = time.perf_counter_ns()
                for _ in range(100):
                    await service.call(request)
                best[name] = min(best[name], (time.perf_counter_ns() - started) / 1e5)
        return best["bare"], best["hedged"]

    return asyncio.run(main())


def tails(hedge: Hedge | None, requests: int = 50_000) -> tuple[Any, float]:
    """Return sorted latencies and the extra load, on a virtual clock; a call takes 8 to 12 ms, 2 % take 10× longer."""

    async def run_on(loop: VirtualLoop) -> tuple[Any, float]:
        draw = random.Random(7)
        sent = 0
        took: list[float] = []

        class Slow:
            async def call(self, _request: Request) -> Response:
                nonlocal sent
                sent += 1
                await asyncio.sleep(0.010 * draw.uniform(0.8, 1.2) * (10.0 if draw.random() < 0.02 else 1.0))
                return Response(1.0)

        service: Any = Slow()
        if hedge is not None:
            hedge.bind_clock(loop.clock)
            service = hedge.wrap(service)

        async def one() -> None:
            began = loop.time()
            await service.call(Request(0.0))
            took.append(loop.time() - began)

        asked = []
        for _ in range(requests):
            asked.append(asyncio.ensure_future(one()))
            await asyncio.sleep(0.002)
        await asyncio.gather(*asked)
        return sorted(took), sent / requests - 1.0

    return run(run_on)


def hedging() -> None:
    without, _ = tails(None)
    hedged, extra = tails(Hedge())
    print("hedging, 2 % of the answers 10× slower, 50,000 requests on a virtual clock: with / without")
    for quantile in (0.5, 0.99, 0.999):
        ours, bare = (1e3 * took[int(quantile * len(took))] for took in (hedged, without))
        print(f"  p{100 * quantile:<7g}{ours:8.1f} / {bare:5.1f} ms   {ours / bare:.2f}")
    TAIL.report(hedged[int(0.999 * len(hedged))] / without[int(0.999 * len(without))])
    EXTRA.report(100 * extra)


def answered(limit: ConcurrencyLimit, rate: float, workers: int, draw: Callable[[], float]) -> tuple[int, int]:
    """Send Poisson requests for a minute of virtual time; return how many succeed and how many are rejected."""

    async def run_on(loop: VirtualLoop) -> tuple[int, int]:
        free = asyncio.Semaphore(workers)
        arrivals = random.Random(3)

        class Workers:
            async def call(self, _request: Request) -> Response:
                async with free:
                    await asyncio.sleep(draw())
                return Response(1.0)

        limit.bind_clock(loop.clock)
        service = limit.wrap(Workers())
        asked = []
        for _ in range(round(60 * rate)):
            asked.append(asyncio.ensure_future(service.call(Request(0.0))))
            await asyncio.sleep(arrivals.expovariate(rate))
        ends = await asyncio.gather(*asked, return_exceptions=True)
        refused = sum(isinstance(end, si.Overloaded) for end in ends)
        return len(ends) - refused, refused

    return run(run_on)


def learning() -> None:
    """Report the rejections of an adaptive limit without queueing, and its throughput beside the best fixed limit.

    No timings separate queueing from service.
    """
    mean_s = 0.05
    kinds: dict[str, Callable[[random.Random], float]] = {
        "constant": lambda _: mean_s,
        "exponential": lambda draw: draw.expovariate(1.0 / mean_s),
        "lognormal": lambda draw: draw.lognormvariate(math.log(mean_s) - 0.5, 1.0),
    }
    print("adaptive limit, service of 50 ms, a minute on a virtual clock")
    for kind, of in kinds.items():
        _, refused = answered(ConcurrencyLimit(), 100.0, 10**6, functools.partial(of, random.Random(5)))
        REJECTED.report(refused, case=f"{kind} service times")
    for kind, of in kinds.items():
        ideal, limit = max(
            (answered(ConcurrencyLimit(limit=limit), 180.0, 10, functools.partial(of, random.Random(5)))[0], -limit)
            for limit in (10, 20, 40, 80, 1000)
        )
        ours, _ = answered(ConcurrencyLimit(), 180.0, 10, functools.partial(of, random.Random(5)))
        SERVED.report(ours / ideal, case=f"{kind} service times", note=f"the best is {-limit}")


def main() -> None:
    if sys.argv[1:] == ["learning"]:
        learning()
        return
    service = Service()
    plain, dated = Request(1.0), Request(1.0, deadline_ns=time.monotonic_ns() + 10**12, priority=1)
    slo = si.SLO("bench", threshold_s=0.05)
    rows = {
        "bare": (service, plain),
        "adaptive": (ConcurrencyLimit().wrap(service), plain),
        "adaptive, deadline and priority": (ConcurrencyLimit().wrap(service), dated),
        "adaptive, with an SLO": (ConcurrencyLimit(slo=slo).wrap(service), dated),
        "fixed": (ConcurrencyLimit(limit=10).wrap(service), dated),
        "RetryBudget": (RetryBudget().wrap(service), dated),
    }
    best = least_ns({name: awaits_of(*row) for name, row in rows.items()})
    print(f"added ns a request, over {best['bare']:.0f} for the bare call of a service")
    for name in rows:
        if name != "bare":
            added = best[name] - best["bare"]
            print(f"  {name:<32}{added:6.0f}")
            if name != "RetryBudget":
                ADDED.report(added / 1e3, case=name)
    bare, hedged = hedged_us()
    print(f"Hedge: {hedged:.2f} µs a request over {bare:.2f}, none of which is hedged")
    hedging()
    learning()


if __name__ == "__main__":
    main()
