"""The fallback router, its cost and its quality under overload: ``python benchmarks/run.py router``.

The figures under load run on a virtual clock and repeat exactly. The models are simulated: ``full`` takes 4 + 3·n ms,
``middle`` half and ``front`` a fifth of that; their qualities are 1.0, 0.9 and 0.8. Two routes are ``full`` and
``front``. Each model has a batcher that learns its times. Arrivals are Poisson, and each request has 100 ms. *Own*: a
device for each model. *One*: all models share a device that runs one batch at a time, like one accelerator or one CPU.

*Capacity* is the rate at which the full model alone responds on time to 99 % of the requests. *Quality per request* is
the sum of the qualities of the responses on time over all requests, so that a request without a response gains nothing.
"""

import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from _lib.figures import Figure
from _lib.floor import cpu_per_request
from _lib.routes import FULL, LIMIT_S, THREE, TWO, Answer, mean, play, score

import streaminfer as si
from streaminfer.batching import PolicyName
from streaminfer.request import Batch
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import VirtualLoop, run

SEEDS = (1, 2, 3)
RATES = (1 / 60, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Requests per second: from one per minute to full batches."""
GOODPUT = Figure(
    "goodput of `FallbackRouter` in overload, from 2 s after it began", over="goodput at capacity", at_least=0.97
)
ON_TIME = Figure("responses of `FallbackRouter` in overload that are on time", form="{:.2f} %", at_least=99)
QUALITY_PER_REQUEST = Figure(
    "quality per request of `FallbackRouter` at 1.3× the capacity",
    over="the best fixed mix of routes",
    form="{:.3f}×",
    at_least=0.97,
)
QUALITY_OF_RESPONSES = Figure(
    "quality of the responses of `FallbackRouter` at 1.3× the capacity",
    over="the best fixed mix with 99 % on time",
    form="{:.3f}×",
    at_least=0.97,
)
RETURN = Figure("slowest return to the best route after a brown-out of 10 s", form="{:.2f} s", at_most=5)
FLAPS = Figure("times that the best route is left again after a brown-out of 10 s", form="{:.0f}", at_most=1)
LOST = Figure("requests lost while the better of two routes is down, worst of six rates", form="{:.2f} %", at_most=1)
LATE = Figure("rates, of six, at which a route is back neither in 10 s nor in three requests", form="{:.0f}", at_most=0)
ADDED = Figure("CPU that `FallbackRouter` with three healthy routes adds to a request", form="{:.1f} µs", at_most=2)


@functools.cache
def capacity() -> float:
    """Return the rate at which the full model alone, without a router, responds on time to 99 % of the requests."""
    low, high = 50.0, 400.0
    for _ in range(8):
        middle = (low + high) / 2
        answers = play([FULL], _steadily(middle), one_device=False, until_s=12.0, shares=[1.0])
        low, high = (middle, high) if score(answers, 2.0, 12.0).on_time >= 0.99 else (low, middle)
    return low


def _steadily(rate: float) -> Callable[[float], float]:
    return lambda _t: rate


def _after_4_s(factor: float) -> Callable[[float], float]:
    return lambda t: capacity() * (factor if t >= 4 else 1)


def _from_5_to_15_s(slow: float) -> Callable[[float], float]:
    return lambda t: slow if 5 <= t < 15 else 1.0


def bench_step() -> None:
    """Measure a step in load: the capacity for 4 s, then two or four times the capacity."""
    print(f"A step to overload; capacity {capacity():.0f}/s, two routes, mean of {len(SEEDS)} seeds")
    print("                                goodput over that at capacity     of answered  quality")
    print("                                in 1 s   in 2 s   after 2 s       on time      per request")
    for one_device in (False, True):
        for factor in (2, 4):
            for name, shares in (("router", None), ("full alone", [1.0])):
                rows = []
                for seed in SEEDS:
                    answers = play(
                        TWO if shares is None else [FULL],
                        _after_4_s(factor),
                        one_device=one_device,
                        until_s=14.0,
                        shares=shares,
                        seed=seed,
                    )
                    before = score(answers, 1.0, 4.0).goodput
                    parts = [score(answers, *span) for span in ((4.0, 5.0), (5.0, 6.0), (6.0, 14.0))]
                    late = score(answers, 4.0, 14.0)
                    rows.append([*(part.goodput / before for part in parts), late[2], parts[2][3]])
                first, second, after, of_answered, quality = np.mean(rows, axis=0)
                device = "one device" if one_device else "own devices"
                print(
                    f"  {device:<12}{factor}× {name:<14}{first:8.2f} {second:8.2f} {after:8.2f}{of_answered:16.4f}"
                    f"{quality:14.3f}"
                )
                if shares is None:
                    case = f"{device}, {factor}× the capacity"
                    GOODPUT.report([row[2] for row in rows], case=case)
                    ON_TIME.report([100 * row[3] for row in rows], case=case)


def bench_quality() -> None:
    """Measure the quality of three routes at 1.3 times the capacity of the best model."""
    rate = 1.3 * capacity()
    print(f"\nQuality kept at 1.3× overload ({rate:.0f}/s), three routes, seconds 4 to 16, mean of {len(SEEDS)} seeds")
    for one_device in (False, True):
        device = "one device" if one_device else "own devices"
        mixes = {}
        for full in np.arange(0.0, 1.01, 0.05):
            for middle in np.arange(0.0, 1.01 - full, 0.1):
                shares = (full, middle, 1.0 - full - middle)
                load = 1.3 * sum(share * model.cost for share, model in zip(shares, THREE, strict=True)) / FULL.cost
                if not 0.6 < load < 1.15 and one_device:
                    continue  # too far from the device's capacity to be the best mix
                answers = play(THREE, lambda _t: rate, one_device=one_device, until_s=10.0, shares=shares)
                mixes[shares] = score(answers, 4.0, 10.0)
        best = max(mixes, key=lambda shares: mixes[shares].quality_per_request)
        on_time = [shares for shares in mixes if mixes[shares].on_time >= 0.99]
        safe = max(on_time, key=lambda shares: mixes[shares].mean_quality)
        found = {}
        ways: list[tuple[str, Any]] = [("best mix", best), ("best with 99 % on time", safe), ("router", None)]
        for name, shares in ways:
            found[name] = mean(
                [
                    score(
                        play(THREE, lambda _t: rate, one_device=one_device, until_s=16.0, shares=shares, seed=seed),
                        4.0,
                        16.0,
                    )
                    for seed in SEEDS
                ]
            )
            parts = "" if shares is None else " ".join(f"{share:.2f}" for share in shares)
            print(
                f"  {device:<12}{name:<24}{parts:<16} per request {found[name].quality_per_request:.4f}, "
                f"mean of answers {found[name].mean_quality:.4f}, on time {found[name].on_time:.4f}"
            )
        ours, mix, timely = (found[name] for name in ("router", "best mix", "best with 99 % on time"))
        QUALITY_PER_REQUEST.report(ours.quality_per_request / mix.quality_per_request, case=device)
        QUALITY_OF_RESPONSES.report(ours.mean_quality / timely.mean_quality, case=device)


def bench_brown_out() -> None:
    """Measure a brown-out at 0.6 of the capacity: all models are slower from second 5 to 15."""
    print("\nReturn after a brown-out of 10 s at 0.6× capacity: until ≥ 99 % of the answers are the best route's")
    rate = 0.6 * capacity()
    for one_device in (False, True):
        for slow in (2.5, 10.0):
            waits, flaps, meanwhile = [], [], []
            for seed in SEEDS:
                answers = play(
                    TWO,
                    _steadily(rate),
                    one_device=one_device,
                    until_s=40.0,
                    slowness=_from_5_to_15_s(slow),
                    seed=seed,
                )
                full = [
                    score(answers, 15 + step / 4, 15.5 + step / 4).quality_per_request > 0.995 for step in range(96)
                ]
                returned = full.index(True)
                waits.append(returned / 4)
                flaps.append(sum(a and not b for a, b in zip(full[returned:-1], full[returned + 1 :], strict=True)))
                meanwhile.append(score(answers, 5.0, 15.0).on_time)
            device = "one device" if one_device else "own devices"
            case = f"{device}, {slow:g}× slower"
            RETURN.report(max(waits), case=case, note=f"meanwhile {100 * np.mean(meanwhile):.1f} % on time")
            FLAPS.report(max(flaps), case=case)


class Outage:
    """Backend that takes 1 ms plus 0.1 ms per row; while it is down, it fails or hangs."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.up = asyncio.Event()
        self.up.set()

    async def infer(self, batch: Batch) -> list[float]:
        if not self.up.is_set():
            if self.kind == "fails":
                raise ConnectionError("down")
            await self.up.wait()
        await asyncio.sleep(0.001 + 0.0001 * len(batch))
        return [1.0] * len(batch)


class Recovery(NamedTuple):
    """Loss and recovery of one outage.

    Attributes:
        lost: share of the requests during the outage that got no response on time.
        seconds: from the end of the outage to the last arrival that the best route did not serve on time.
        requests: number of requests that arrived in these seconds, including the last.
    """

    lost: float
    seconds: float
    requests: int


def outage(rate: float, kind: str, *, batched: bool, seed: int = 1) -> Recovery:
    """Run an outage of the better of two routes: ten seconds, or the time of twelve requests if that is longer."""

    async def main(loop: VirtualLoop) -> Recovery:
        best = Outage(kind)

        def route(name: str, backend: Any, quality: float) -> Route:
            layers = [si.AdaptiveBatcher(max_batch_size=32, slo_s=LIMIT_S), backend] if batched else [backend]
            return Route(name, layers, quality=quality, device=name)

        router = FallbackRouter(route("best", best, 1.0), route("other", Outage(kind), 0.8))
        random = np.random.default_rng(seed)
        answers: list[Answer] = []

        async def ask(stack: si.Stack) -> None:
            arrived_ns = loop.now_ns
            source = ""
            with contextlib.suppress(si.errors.StreamInferError):
                source = (await stack.call(si.Request(1.0, deadline_ns=arrived_ns + round(LIMIT_S * 1e9)))).source
            on_time = bool(source) and loop.now_ns <= arrived_ns + LIMIT_S * 1e9
            answers.append(Answer(arrived_ns / 1e9, on_time, source.split(" ")[0]))

        async def load(stack: si.Stack, requests: int, seconds: float) -> None:
            until_s = loop.time() + max(requests / rate, seconds)
            while loop.time() < until_s:
                asked.append(asyncio.ensure_future(ask(stack)))
                await asyncio.sleep(random.exponential(1 / rate))

        asked: list[asyncio.Future[None]] = []
        async with si.Stack(router, clock=loop.clock) as stack:
            await load(stack, 12, 3.0)
            down_s = loop.time()
            best.up.clear()
            await load(stack, 12, 10.0)
            up_s = loop.time()
            best.up.set()
            await load(stack, 24, 15.0)
            await asyncio.gather(*asked)
        during = [answer for answer in answers if down_s <= answer.arrived_s < up_s]
        after = sorted(answer for answer in answers if answer.arrived_s >= up_s)
        lesser = [number for number, answer in enumerate(after) if answer.route != "best" or not answer.on_time]
        requests = lesser[-1] + 1 if lesser else 0
        lost = sum(not answer.on_time for answer in during) / len(during)
        return Recovery(lost, after[requests - 1].arrived_s - up_s if requests else 0.0, requests)

    return run(main)


def bench_outage() -> None:
    """Measure losses while the better of two routes fails or hangs, at each rate, and its return to all requests."""
    print("\nAn outage of the better of two routes, 10 s or twelve requests, then until all have its response again")
    for kind in ("fails", "hangs"):
        for batched in (False, True):
            worst_lost, late = 0.0, 0
            for rate in RATES:
                lost, seconds, requests = outage(rate, kind, batched=batched)
                worst_lost = max(worst_lost, lost)
                late += seconds > 10.0 and requests > 3
                print(f"  {rate:9.3f}/s: lost {lost:.2%}; back after {seconds:.2f} s, {requests} requests")
            case = f"it {kind}, {'with batchers' if batched else 'without batchers'}"
            LOST.report(100 * worst_lost, case=case)
            LATE.report(late, case=case)


class Answering:
    """Service that responds at almost no cost."""

    enforces_deadline = True
    response = si.Response(1.0, False, "bench")

    async def call(self, _request: si.Request) -> si.Response:
        return self.response


class NoOp:
    """Backend that does no work."""

    async def infer(self, batch: Batch) -> list[float]:
        return [1.0] * len(batch)


def bench_cost() -> None:
    """Measure the CPU per request of a stack with and without a router of three healthy routes."""

    def batched(policy: PolicyName) -> Any:
        return si.AdaptiveBatcher(max_batch_size=64, slo_s=0.05, policy=policy).wrap(NoOp())

    async def measure(service: Any, callers: int) -> float:
        async with si.Stack(service) as stack:
            return await cpu_per_request(functools.partial(stack, timeout_s=0.5), callers, 20_000)

    def routed(make: Callable[[], Any]) -> FallbackRouter:
        return FallbackRouter(*(Route(name, make(), quality=1.0 - number / 10) for number, name in enumerate("abc")))

    print("\nCPU per request, µs, least of 10               bare    with router    added   (three healthy routes)")
    services: dict[str, Callable[[], Any]] = {
        "no batcher": Answering,
        "batcher, greedy": lambda: batched("greedy"),
        "batcher, lookahead": lambda: batched("lookahead"),
    }
    cases: dict[str, list[float]] = {}
    for callers in (1, 32):
        for name, make in services.items():
            bare = routed_s = float("inf")
            for _ in range(10):
                bare = min(bare, asyncio.run(measure(make(), callers)))
                routed_s = min(routed_s, asyncio.run(measure(routed(make), callers)))
            added = (routed_s - bare) * 1e6
            label = f"{name}, {callers} callers"
            figures = f"{bare * 1e6:8.2f}{routed_s * 1e6:12.2f}{added:12.2f}"
            print(f"  {label:<42}{figures}")
            case = name if name == "no batcher" else f"batcher, {callers} caller{'s' if callers > 1 else ''}"
            cases.setdefault(case, []).append(added)
    for case, values in cases.items():
        ADDED.report(values, case=case)


PARTS = {
    "step": bench_step,
    "quality": bench_quality,
    "brown-out": bench_brown_out,
    "outage": bench_outage,
    "cost": bench_cost,
}


def main() -> None:
    """Run all parts, or those that the command line names."""
    si.warmup()
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
