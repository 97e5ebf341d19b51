"""Replicas beside simpler policies, in virtual time, so that all but part 6 is deterministic.

    python benchmarks/run.py replicas

A replica is a queue and its workers, with exponential service times of 10 ms in the mean. Arrivals are Poisson, and
every policy gets the same arrivals and service times. The ideal of a policy is the same policy without the slow
replica. The benchmark also prints least in flight without that replica, a policy that knows all queues.

Part 1: one of eight replicas is five times slower. Part 2: replicas have different speeds. Part 3: one fails and
recovers. Part 4: the zone of the caller is overloaded. Part 5: a host where batches and this process stall. Part 6: the
cost of a choice.
"""

import asyncio
import functools
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.routing import Replica, Replicas
from streaminfer.testing import ScriptedBackend, VirtualLoop, run
from streaminfer.testing.faults import FaultPlan, Faulty, delay, error, hang

MEAN_S = 0.010
REQUESTS = 30_000
Floats = NDArray[np.float64]
SLOW = Figure("p99 of `Replicas`, one of eight five times slower", over="`Replicas` without the slow one", at_most=1.15)
SLOW_BESIDE_LEAST = Figure(
    "p99 of `Replicas`, one of eight slow, beside a policy that knows all queues",
    over="least in flight among the other seven",
)
UNEQUAL = Figure("p99 of eight replicas of 0.5 to 3 times the service time, at 0.7 of capacity", form="{:,.0f} ms")
SENT = Figure("requests sent to a replica while it is broken for ten seconds", form="{:.0f}")
FAILED = Figure("requests of callers that fail while one of eight replicas is broken", form="{:.2f} %")
LEFT = Figure("time until a broken replica gets under 2 % of the traffic", form="{:.1f} s")
RETURNED = Figure("time until a replica that recovered has nine tenths of its share", form="{:.1f} s")
LEAVING = Figure("requests that leave their zone for one 20 ms away", form="{:.1f} %")
TWO_ZONES = Figure("p99 with four replicas in the zone and four 20 ms away", form="{:,.0f} ms")
ONE_ZONE = Figure("p99 with the four replicas in the zone alone", form="{:,.0f} ms")
NOISY = Figure(
    "requests on time at batching replicas on a noisy host, SLO 50 ms",
    over="least in flight over the same replicas",
    at_least=1.0,
)
CHOICE = Figure("CPU of a choice among eight replicas and of its result", form="{:.2f} µs")
ADDED = Figure("CPU that `Replicas` adds to a request", form="{:.2f} µs")


class Place:
    """Queue and workers of a replica; the number of a request determines its service time, alike for every policy."""

    def __init__(self, loop: VirtualLoop, services: Floats, *, slower: float = 1.0, workers: int = 1) -> None:
        self._loop = loop
        self._services = services
        self._slower = slower
        self._free = [0.0] * workers
        self.in_flight = self.asked = 0

    async def call(self, request: si.Request) -> si.Response:
        self.in_flight += 1
        self.asked += 1
        try:
            now = self._loop.time()
            ends = max(now, self._free[0]) + float(self._services[request.inputs]) * self._slower
            heapq.heapreplace(self._free, ends)
            await asyncio.sleep(ends - now)
        finally:
            self.in_flight -= 1
        return si.Response(request.inputs)


class Policy:
    """Service that sends each request to one of several places; a subclass chooses the place."""

    def __init__(self, places: Sequence[Any], loop: VirtualLoop) -> None:
        self.places = places
        self.loop = loop
        self.random = random.Random(7)

    def choose(self) -> int:
        raise NotImplementedError

    def ended(self, number: int, seconds: float) -> None:
        """Record the duration of a request; only some policies use it."""

    async def call(self, request: si.Request) -> si.Response:
        number = self.choose()
        began = self.loop.time()
        response: si.Response = await self.places[number].call(request)
        self.ended(number, self.loop.time() - began)
        return response


class Random(Policy):
    def choose(self) -> int:
        return self.random.randrange(len(self.places))


class RoundRobin(Policy):
    turn = -1

    def choose(self) -> int:
        self.turn += 1
        return self.turn % len(self.places)


class LeastInFlight(Policy):
    def choose(self) -> int:
        least = min(place.in_flight for place in self.places)
        return self.random.choice([n for n, place in enumerate(self.places) if place.in_flight == least])


class TwoByInFlight(Policy):
    def choose(self) -> int:
        one, other = self.random.sample(range(len(self.places)), 2)
        return one if self.places[one].in_flight <= self.places[other].in_flight else other


class PeakEwma(Policy):
    """Finagle's policy: two choices; cost is (in flight + 1) times an average that jumps to each peak, decay 10 s."""

    def __init__(self, places: Sequence[Any], loop: VirtualLoop) -> None:
        super().__init__(places, loop)
        self.average = [0.0] * len(places)
        self.at = [0.0] * len(places)

    def cost(self, number: int) -> float:
        decayed = self.average[number] * math.exp((self.at[number] - self.loop.time()) / 10.0)
        in_flight: int = self.places[number].in_flight
        return decayed * (in_flight + 1)

    def choose(self) -> int:
        one, other = self.random.sample(range(len(self.places)), 2)
        return one if self.cost(one) <= self.cost(other) else other

    def ended(self, number: int, seconds: float) -> None:
        now = self.loop.time()
        weight = math.exp((self.at[number] - now) / 10.0)
        average = self.average[number]
        self.average[number] = seconds if seconds > average else average * weight + seconds * (1.0 - weight)
        self.at[number] = now


def ours(**options: Any) -> Callable[[Sequence[Any], VirtualLoop], Any]:
    def make(places: Sequence[Any], loop: VirtualLoop) -> Any:
        named = [Replica(str(number), place) for number, place in enumerate(places)]
        return Replicas(*named, seed=1, clock=loop.clock, **options)

    return make


POLICIES: dict[str, Callable[[Sequence[Any], VirtualLoop], Any]] = {
    "random": Random,
    "round robin": RoundRobin,
    "least in flight": LeastInFlight,
    "two choices by in flight": TwoByInFlight,
    "two choices by peak EWMA (Finagle)": PeakEwma,
    "Replicas": ours(),
    "Replicas(choices=8)": ours(choices=8),
}


async def offer(service: Any, loop: VirtualLoop, arrivals: Floats, timeout_s: float | None = None) -> Floats:
    """Send requests at their arrival times; return the latency of each in seconds, NaN if it failed."""
    latencies = np.full(len(arrivals), np.nan)

    async def one(number: int) -> None:
        began = loop.clock()
        deadline = None if timeout_s is None else began + round(timeout_s * 1e9)
        try:
            await service.call(si.Request(number, deadline_ns=deadline))
        except Exception:
            return
        latencies[number] = (loop.clock() - began) / 1e9

    tasks = []
    for number, at in enumerate(arrivals):
        if at > loop.time():
            await asyncio.sleep(at - loop.time())
        tasks.append(asyncio.ensure_future(one(number)))
    await asyncio.gather(*tasks)
    return latencies


def trace(rate: float, count: int = REQUESTS) -> Floats:
    return np.cumsum(np.random.default_rng(1).exponential(1.0 / rate, count))


def services(count: int = REQUESTS) -> Floats:
    return np.random.default_rng(2).exponential(MEAN_S, count)


def p99(make: Callable[..., Any], slower: Sequence[float], rate: float, workers: int = 1) -> tuple[float, float]:
    """Return the p99 in milliseconds, without the first tenth of the requests, and the last replica's share."""

    async def main(loop: VirtualLoop) -> tuple[float, float]:
        times = services()
        places = [Place(loop, times, slower=factor, workers=workers) for factor in slower]
        latencies = await offer(make(places, loop), loop, trace(rate))
        return float(np.quantile(latencies[REQUESTS // 10 :], 0.99)) * 1e3, places[-1].asked / REQUESTS

    return run(main)


def report_slow(load: str, ratios: dict[str, float]) -> None:
    """Report the p99 of `Replicas` over its ideal, beside the ratios of the other policies."""
    others = {name: ratio for name, ratio in ratios.items() if not name.startswith("Replicas")}
    note = ", ".join(f"{name} {f'{ratio:.2f}×' if ratio < 100 else 'overloaded'}" for name, ratio in others.items())
    SLOW.report(ratios["Replicas"], case=load, note=note)
    SLOW.report(ratios["Replicas(choices=8)"], case=f"{load}, `choices=8`")


def one_slow() -> None:
    print("\n1. one of eight is five times slower: p99, over the ideal, share of the slow one")
    seven, eight = [1.0] * 7, [1.0] * 7 + [5.0]
    for workers, load in ((1, 0.2), (1, 0.5), (1, 0.7), (1, 0.85), (4, 0.7)):
        rate = load * 7 * workers / MEAN_S
        strongest, _ = p99(LeastInFlight, seven, rate, workers)
        print(f"load {load} of the seven, workers {workers}: least in flight of the seven {strongest:.1f} ms")
        ratios, beside_least = {}, {}
        for name, make in POLICIES.items():
            ideal, _ = p99(make, seven, rate, workers)
            took, share = p99(make, eight, rate, workers)
            ratios[name], beside_least[name] = took / ideal, took / strongest
            print(
                f"  {name:38}{took:10.1f} ms{took / ideal:9.2f} of its own ideal"
                f"{took / strongest:9.2f} of the strongest{share:9.2%}",
                flush=True,
            )
        case = f"load {load} of the seven" + (f", {workers} workers each" if workers > 1 else "")
        report_slow(case, ratios)
        SLOW_BESIDE_LEAST.report(beside_least["Replicas"], case=case)
        SLOW_BESIDE_LEAST.report(beside_least["Replicas(choices=8)"], case=f"{case}, `choices=8`")


def batching() -> None:
    """Measure part 1 with real batchers: 4 + 0.25·n ms, up to 32 requests per batch."""

    def batch_s(factor: float, size: int) -> float:
        return (0.004 + 0.00025 * size) * factor

    def stacks(loop: VirtualLoop, slower: Sequence[float]) -> list[si.Stack]:
        return [
            si.Stack(
                si.AdaptiveBatcher(max_batch_size=32, max_queue_size=10**6, policy="greedy", stack=False),
                ScriptedBackend(duration_s=functools.partial(batch_s, factor)),
                clock=loop.clock,
            )
            for factor in slower
        ]

    def figure(make: Callable[..., Any], slower: Sequence[float]) -> float:
        async def main(loop: VirtualLoop) -> float:
            members = stacks(loop, slower)
            for member in members:
                await member.start()
            count = 20_000
            latencies = await offer(make(members, loop), loop, trace(0.6 * 7 * 32 / 0.012, count))
            for member in members:
                await member.stop()
            return float(np.quantile(latencies[count // 10 :], 0.99)) * 1e3

        return run(main)

    print("real batchers, 4 + 0.25·n ms, load 0.6 of the seven")
    ratios = {}
    for name in ("random", "round robin", "Replicas", "Replicas(choices=8)"):
        ideal, took = figure(POLICIES[name], [1.0] * 7), figure(POLICIES[name], [1.0] * 7 + [5.0])
        ratios[name] = took / ideal
        print(f"  {name:38}{took:10.1f} ms{took / ideal:9.2f} of its own ideal")
    report_slow("load 0.6 of the seven, real batchers of 4 + 0.25·n ms", ratios)


class Counted:
    """Service that counts its requests in flight."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.in_flight = 0

    async def call(self, request: si.Request) -> si.Response:
        self.in_flight += 1
        try:
            response: si.Response = await self.inner.call(request)
        finally:
            self.in_flight -= 1
        return response


def noisy_host() -> None:
    """Run four batching replicas, one three times slower, where 3 % of the batches take long and the loop stalls."""
    slower = [1.0, 1.0, 1.0, 3.0]

    async def main(loop: VirtualLoop, name: str, load: float, seed: int) -> float:
        draws = np.random.default_rng(seed)

        def batch_s(factor: float, size: int) -> float:
            stretch = draws.exponential(draws.choice([0.05, 0.4, 2.0], p=[0.85, 0.12, 0.03]))
            return float((0.004 + 0.00025 * size) * factor * (1.0 + stretch))

        async def stall() -> None:
            while True:
                await asyncio.sleep(draws.exponential(0.08))
                loop.now_ns += round(draws.exponential(0.015) * 1e9)

        backends = [ScriptedBackend(duration_s=functools.partial(batch_s, factor)) for factor in slower]
        batchers = [si.AdaptiveBatcher(max_batch_size=32, slo_s=0.05) for _ in slower]
        members = [si.Stack(*layers, clock=loop.clock) for layers in zip(batchers, backends, strict=True)]
        for member in members:
            await member.start()
        stalls = asyncio.ensure_future(stall())
        rate = load * sum(32 / (factor * 0.012) for factor in slower)
        service = POLICIES[name]([Counted(member) for member in members], loop)
        latencies = await offer(service, loop, trace(rate, round(4 * rate)), timeout_s=0.05)
        stalls.cancel()
        for member in members:
            await member.stop()
        return float(np.mean(latencies <= 0.05))

    print("\n5. a noisy host; four batching replicas, one three times slower")
    for load in (0.3, 0.6, 0.8):
        shares = {}
        for name in ("Replicas", "least in flight"):
            shares[name] = [run(functools.partial(main, name=name, load=load, seed=seed)) for seed in range(5)]
            print(f"  load {load}, {name:20} on time " + " ".join(f"{share:.3f}" for share in shares[name]))
        ratios = [ours / other for ours, other in zip(shares["Replicas"], shares["least in flight"], strict=True)]
        NOISY.report(ratios, case=f"load {load}", note=f"five seeds; {statistics.median(shares['Replicas']):.3f}")


def heterogeneous() -> None:
    slower = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0]
    rate = 0.7 * sum(1.0 / factor for factor in slower) / MEAN_S
    print("\n2. replicas of different speeds")
    for name, make in POLICIES.items():
        took, _ = p99(make, slower, rate)
        UNEQUAL.report(took, case=name)


def broken() -> None:
    print("\n3. one of eight breaks at 5 s and recovers at 15 s; 2,000 requests/s, 50 ms to answer")
    rate, count, step = 2000.0, 70_000, 0.1

    async def main(loop: VirtualLoop, fault: Any) -> tuple[float, float, float, int]:
        times = np.random.default_rng(2).exponential(0.0025, count)
        seen: list[float] = []

        class Counted(Place):
            async def call(self, request: si.Request) -> si.Response:
                seen.append(loop.time())
                response: si.Response = await plan.call(request)
                return response

        bad = Place(loop, times)
        plan = Faulty(bad, FaultPlan(fault.between(5.0, 15.0), clock=loop.clock))
        places = [*(Place(loop, times) for _ in range(7)), Counted(loop, times)]
        plan.plan.begin()
        replicas = ours()(places, loop)
        latencies = await offer(replicas, loop, trace(rate, count), timeout_s=0.050)
        shares = np.histogram(seen, bins=np.arange(0.0, count / rate, step))[0] / (rate * step)
        above = np.flatnonzero(shares[: round(15 / step)] >= 0.02)
        smooth = np.convolve(shares, np.ones(10) / 10, "valid")  # over one second
        full = np.flatnonzero(smooth[round(15 / step) :] >= 0.9 / 8)
        failed = np.isnan(latencies[(trace(rate, count) >= 5.0) & (trace(rate, count) < 15.0)])
        asked = int(((np.array(seen) >= 5.0) & (np.array(seen) < 15.0)).sum())
        return (above[-1] + 1) * step - 5.0, float(full[0]) * step if len(full) else math.nan, failed.mean(), asked

    for name, fault in (("fails at once", error(OSError("gone"))), ("hangs", hang())):
        until, back, failed, asked = run(functools.partial(main, fault=fault))
        SENT.report(asked, case=name)
        FAILED.report(100 * failed, case=name)
        LEFT.report(until, case=name)
        RETURNED.report(back, case=name)


def zones() -> None:
    print("\n4. four replicas at home, four in another zone, 20 ms away")

    def figure(load: float, away: int, broken_at_home: int = 0) -> tuple[float, float]:
        async def main(loop: VirtualLoop) -> tuple[float, float]:
            count = 15_000
            times = services(count)
            home = [Place(loop, times) for _ in range(4)]
            far = [Place(loop, times) for _ in range(away)]
            failing = FaultPlan(error(OSError("gone")), clock=loop.clock)
            at_home = [Faulty(place, failing) if n < broken_at_home else place for n, place in enumerate(home)]
            travel = FaultPlan(delay(0.020), clock=loop.clock)
            named = [Replica(f"home{n}", place, zone="home") for n, place in enumerate(at_home)]
            named += [Replica(f"far{n}", Faulty(place, travel), zone="far") for n, place in enumerate(far)]
            replicas = Replicas(*named, zone="home", seed=1, clock=loop.clock)
            latencies = await offer(replicas, loop, trace(load * 4 / MEAN_S, count))
            answered = latencies[count // 10 :]
            return sum(place.asked for place in far) / count, float(np.nanquantile(answered, 0.99)) * 1e3

        return run(main)

    for load in (0.3, 0.6, 0.9, 1.2, 1.5):
        left, took = figure(load, 4)
        _, alone = figure(load, 0)
        LEAVING.report(100 * left, case=f"load {load} of the zone")
        TWO_ZONES.report(took, case=f"load {load} of the zone")
        ONE_ZONE.report(alone, case=f"load {load} of the zone", note="and growing" if load > 1.0 else "")
    left, took = figure(0.6, 4, broken_at_home=2)
    LEAVING.report(100 * left, case="load 0.6 of the zone, two of its four broken")
    TWO_ZONES.report(took, case="load 0.6 of the zone, two of its four broken")


def cost() -> None:
    class Nothing:
        enforces_deadline = True

        async def call(self, _: si.Request) -> si.Response:
            return response

    response, request, calls = si.Response(0.0), si.Request(0.0), 500
    inner = Nothing()
    replicas = Replicas(*(Replica(str(number), inner) for number in range(8)), seed=1)
    balance = replicas._balancer

    async def direct() -> None:
        for _ in range(calls):
            await inner.call(request)

    async def chosen() -> None:
        for _ in range(calls):
            await replicas.call(request)

    async def machine() -> None:
        for now in range(calls):
            balance.done(balance.choose(-1, now), 0, 1_000, now)

    best = dict.fromkeys((direct, chosen, machine), math.inf)
    for _ in range(300):
        for each in best:
            began = time.perf_counter_ns()
            try:
                each().send(None)
            except StopIteration:
                best[each] = min(best[each], (time.perf_counter_ns() - began) / calls)
    print("\n6. CPU of a choice among 8, least of 300 rounds")
    CHOICE.report(best[machine] / 1e3)
    ADDED.report((best[chosen] - best[direct]) / 1e3)


def main() -> None:
    one_slow()
    batching()
    heterogeneous()
    broken()
    zones()
    noisy_host()
    cost()


if __name__ == "__main__":
    main()
