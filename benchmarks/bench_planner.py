"""The planner beside the other policies and the clairvoyant optimum; simulated and in virtual time, so deterministic.

    python benchmarks/bench_planner.py

Part 1: shares of the optimum's goodput (largest rate with 99 % on time), affine 5 + 1·b ms, 32 a batch, SLO 50 ms,
one worker.
Part 2: a live batcher that learns an accelerator of 4 + 0.25·n ms, 64 a batch, capacity 3,200/s.
Part 3: the cost of a decision.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.batching import Lookahead, ServiceTime, arrivals, clairvoyant_optimum, simulate
from streaminfer.batching._queue_cy import RequestQueue
from streaminfer.testing import ScriptedBackend, VirtualLoop, run

SEEDS = (1, 2, 3)
LINE = ServiceTime.affine(0.005, 0.001)
LINE_CAPACITY = 32 / 0.037
CAPACITY = 3200.0
GENERATORS = {"Poisson": arrivals.poisson, "gamma CV 4": arrivals.gamma, "on-off": arrivals.on_off}
Floats = NDArray[np.float64]


def accelerator(size: int, _now_s: float) -> float:
    return 0.004 + 0.00025 * size


def goodput(share: Callable[[float], float], capacity: float) -> float:
    """The largest rate with 99 % on time, by nine bisections."""
    low, high = 5.0, 1.3 * capacity
    for _ in range(9):
        middle = (low + high) / 2
        if share(middle) >= 0.99:
            low = middle
        else:
            high = middle
    return low


def simulated() -> None:
    options: dict[str, Any] = {"slo_s": 0.05, "service_time": LINE, "max_batch_size": 32}
    print(
        f"\nshare of the optimum's goodput{'':14}"
        + "".join(f"{name:>12}" for name in GENERATORS)
        + "   on time at 1.5×"
    )

    def traces(name: str, rate: float) -> list[Floats]:
        return [GENERATORS[name](rate, 2500, seed) for seed in SEEDS]

    def optimum(name: str, rate: float) -> float:
        return sum(clairvoyant_optimum(trace, **options) for trace in traces(name, rate)) / 7500

    def policy(kind: str, name: str, rate: float) -> float:
        return sum(simulate(trace, policy=kind, **options).on_time for trace in traces(name, rate)) / 7500

    def best_of(name: str) -> float:
        return goodput(lambda rate: optimum(name, rate), LINE_CAPACITY)

    def goodput_of(kind: str, name: str) -> float:
        return goodput(lambda rate: policy(kind, name, rate), LINE_CAPACITY)

    best = {name: best_of(name) for name in GENERATORS}
    overload = 1.5 * LINE_CAPACITY
    ceiling = optimum("Poisson", overload)
    for kind in ("greedy", "lookahead"):
        cells = [goodput_of(kind, name) / best[name] for name in GENERATORS]
        print(
            f"{kind:44}"
            + "".join(f"{cell:12.3f}" for cell in cells)
            + f"{policy(kind, 'Poisson', overload) / ceiling:16.3f}"
        )
    print(f"{'bar':44}{'≥ 0.970':>12}{'≥ 0.880':>12}{'≥ 0.940':>12}{'≥ 0.990':>16}")


def live(
    policy: str,
    trace: Floats,
    limits: Floats,
    priorities: NDArray[np.bool_] | None = None,
    device: Callable[[int, float], float] = accelerator,
) -> NDArray[np.bool_]:
    """Which requests a live batcher on a virtual clock answers on time; it learns the device."""
    on_time = np.zeros(len(trace), np.bool_)

    async def main(loop: VirtualLoop) -> None:
        batcher = si.AdaptiveBatcher(
            max_batch_size=64, policy=policy, max_queue_size=10**6, stack=False, clock=loop.clock
        )
        service = batcher.wrap(ScriptedBackend(duration_s=lambda size: device(size, loop.time())))

        async def ask(number: int) -> None:
            deadline_ns = round((trace[number] + limits[number]) * 1e9)
            priority = 0 if priorities is None else int(priorities[number])
            try:
                await service.call(si.Request(number, deadline_ns=deadline_ns, priority=priority))
            except si.DeadlineExceeded:
                return
            on_time[number] = loop.now_ns <= deadline_ns

        asked = []
        for number, at in enumerate(trace):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            asked.append(asyncio.ensure_future(ask(number)))
        await asyncio.wait(asked)

    run(main)
    return on_time


def in_virtual_time() -> None:
    slos = (0.025, 0.050, 0.100)

    def triple(share: Callable[[float], float]) -> str:
        return " / ".join(f"{share(slo):.3f}" for slo in slos)

    def uniform(policy: str, trace: Floats, slo: float) -> float:
        return float(live(policy, trace, np.full(len(trace), slo)).mean())

    limits = np.where(np.random.default_rng(99).random(12_000) < 0.3, 0.025, 0.100)
    urgent = np.random.default_rng(5).random(12_000) < 0.2
    brown = arrivals.poisson(0.6 * CAPACITY, int(0.6 * CAPACITY * 14), 1)

    def slowed(size: int, now_s: float) -> float:
        return accelerator(size, now_s) * (2 if 4 <= now_s < 10 else 1)

    print(f"\n{'live, learned; SLO 25 / 50 / 100 ms':44}{'greedy':>24}{'lookahead':>24}   bar")

    def urgency(policy: str) -> str:
        on = live(policy, arrivals.poisson(1.5 * CAPACITY, 12_000, 1), np.full(12_000, 0.05), ~urgent)
        return f"{on[urgent].mean():.3f} / {on.mean():.3f}"

    def brown_out(policy: str) -> str:
        on = live(policy, brown, np.full(len(brown), 0.05), device=slowed)
        return f"{on[(brown >= 4) & (brown < 10)].mean():.3f} / {on[brown >= 11].mean():.3f}"

    def largest_rate(policy: str, slo: float) -> float:
        return goodput(lambda rate: uniform(policy, arrivals.poisson(rate, 6000, 1), slo), CAPACITY) / CAPACITY

    def bursty(policy: str, slo: float) -> float:
        return statistics.mean(
            uniform(policy, arrivals.bursts(0.5 * CAPACITY, 24_000, seed), slo) for seed in range(1, 6)
        )

    def mixed(policy: str, load: float) -> float:
        return float(live(policy, arrivals.poisson(load * CAPACITY, 12_000, 1), limits).mean())

    rows: list[tuple[str, Callable[[str], str], str]] = [
        (
            "goodput, share of capacity",
            lambda policy: triple(lambda slo: largest_rate(policy, slo)),
            "≥ 0.775 / best peer / 1.0",
        ),
        (
            "on time at 1.2× capacity",
            lambda policy: triple(lambda slo: uniform(policy, arrivals.poisson(1.2 * CAPACITY, 12_000, 1), slo)),
            "≥ 0.735 / 0.82 / 0.82",
        ),
        (
            "bursts 10×, mean load 0.5, mean of 5 seeds",
            lambda policy: triple(lambda slo: bursty(policy, slo)),
            "≥ 0.75 / 0.82 / 0.91",
        ),
        (
            "30 % at 25 ms, 70 % at 100 ms: 0.95× / 1.2×",
            lambda policy: f"{mixed(policy, 0.95):.3f} / {mixed(policy, 1.2):.3f}",
            "≥ 0.935 / 0.79",
        ),
        ("20 % urgent at 1.5×: urgent / total", urgency, "≥ 0.99 / 0.97 of unweighted"),
        (
            "the same without priorities: total",
            lambda policy: f"{uniform(policy, arrivals.poisson(1.5 * CAPACITY, 12_000, 1), 0.05):.3f}",
            "",
        ),
        ("device 2× slower for 6 s: during / 1 s after", brown_out, "≥ 0.72 / 1.0"),
    ]
    for name, measure, bar in rows:
        print(f"{name:44}{measure('greedy'):>24}{measure('lookahead'):>24}   {bar}", flush=True)


def cost() -> None:
    print(f"\n{'a decision of the planner, median µs':44}{'on time anyway':>16}{'planned':>12}   bar")
    rng = np.random.default_rng(0)
    for name, device, cap in (
        ("5 + 1·b ms, 32", LINE, 32),
        ("4 + 0.25·n ms, 64", ServiceTime.affine(0.004, 0.00025), 64),
    ):
        for waiting in (8, 128, 10_000):
            cells = []
            for limits in (
                np.full(waiting, 1e6),
                np.sort(rng.uniform(0.012, 0.05 if waiting < 10_000 else 5.0, waiting)),
            ):
                queue = RequestQueue(waiting)
                for number, limit in enumerate(limits):
                    queue.admit(None, number, None, number * 10, round(limit * 1e9), 0)
                policy = Lookahead(cap, device)
                seconds = []
                for _ in range(30):
                    started = time.perf_counter()
                    policy.decide(queue, 10**6, 1)
                    seconds.append(time.perf_counter() - started)
                cells.append(statistics.median(seconds) * 1e6)
            bar = {8: "", 128: "≤ 1 / 150", 10_000: "– / 1000"}[waiting]
            print(f"{name + f', {waiting:,} waiting':44}{cells[0]:16.1f}{cells[1]:12.1f}   {bar}")


def main() -> None:
    si.warmup()
    simulated()
    in_virtual_time()
    cost()


if __name__ == "__main__":
    main()
