"""The planner beside the other policies and the clairvoyant optimum; simulated and in virtual time, so deterministic.

    python benchmarks/run.py planner

Part 1: shares of the optimum's goodput (largest rate with 99 % on time), affine 5 + 1·b ms, 32 rows per batch,
SLO 50 ms, one worker.
Part 2: a live batcher that learns an accelerator; workload.py has the workload, and peers/planner.py measures the peers
on the same rows.
Part 3: the cost of a decision.
"""

import statistics
import time
from typing import Any

import numpy as np
from _lib.figures import Figure
from _lib.workload import (
    BATCH,
    CAPACITY,
    ROWS,
    Ask,
    Contestant,
    Infer,
    as_text,
    largest_rate,
    measure_row,
    on_time,
)
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.batching import Lookahead, PolicyName, ServiceTime, clairvoyant_optimum, simulate
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.simulation import arrivals
from streaminfer.testing import VirtualLoop

SEEDS = (1, 2, 3)
LINE = ServiceTime.affine(0.005, 0.001)
LINE_CAPACITY = 32 / 0.037
POLICIES: tuple[PolicyName, ...] = ("greedy", "lookahead")
GENERATORS = {"Poisson": arrivals.poisson, "gamma CV 4": arrivals.gamma, "on-off": arrivals.on_off}
OF_OPTIMUM = {
    "Poisson": Figure(
        "largest rate with 99 % on time, Poisson arrivals",
        over="the clairvoyant optimum",
        form="{:.3f}×",
        at_least=0.97,
    ),
    "gamma CV 4": Figure(
        "largest rate with 99 % on time, bursty (gamma) arrivals",
        over="the clairvoyant optimum",
        form="{:.3f}×",
        at_least=0.88,
    ),
    "on-off": Figure(
        "largest rate with 99 % on time, on-off arrivals", over="the clairvoyant optimum", form="{:.3f}×", at_least=0.94
    ),
}
OVERLOADED = Figure(
    "requests on time at 1.5× capacity, Poisson arrivals", over="the clairvoyant optimum", form="{:.3f}×", at_least=0.99
)
BEST_PEER = Figure("largest rate with 99 % on time, SLO 50 ms", over="the device's capacity", form="{:.3f}×")
OF_ROWS = (
    (
        Figure(
            "largest rate with 99 % on time, SLO 25 ms", over="the device's capacity", form="{:.3f}×", at_least=0.775
        ),
        BEST_PEER,
        Figure(
            "largest rate with 99 % on time, SLO 100 ms", over="the device's capacity", form="{:.3f}×", at_least=1.0
        ),
    ),
    (
        Figure("share on time at 1.2× capacity, SLO 25 ms", form="{:.3f}", at_least=0.735),
        Figure("share on time at 1.2× capacity, SLO 50 ms", form="{:.3f}", at_least=0.82),
        Figure("share on time at 1.2× capacity, SLO 100 ms", form="{:.3f}", at_least=0.82),
    ),
    (
        Figure("share on time in bursts of 10×, mean load 0.5, SLO 25 ms", form="{:.3f}", at_least=0.75),
        Figure("share on time in bursts of 10×, mean load 0.5, SLO 50 ms", form="{:.3f}", at_least=0.82),
        Figure("share on time in bursts of 10×, mean load 0.5, SLO 100 ms", form="{:.3f}", at_least=0.91),
    ),
    (
        Figure("share on time at 0.95× capacity, SLO 25 ms for 30 %, 100 ms for 70 %", form="{:.3f}", at_least=0.935),
        Figure("share on time at 1.2× capacity, SLO 25 ms for 30 %, 100 ms for 70 %", form="{:.3f}", at_least=0.79),
    ),
    (
        Figure("share on time while the device is 2× slower for 6 s, load 0.6", form="{:.3f}", at_least=0.72),
        Figure("share on time from 1 s after a device was 2× slower, load 0.6", form="{:.3f}", at_least=1.0),
    ),
)
"""Figures of each row of the workload."""
URGENT = Figure("share on time of urgent requests, a fifth of all at 1.5× capacity", form="{:.3f}", at_least=0.99)
ALL_PRIORITIES = Figure(
    "requests on time at 1.5× capacity, two priorities",
    over="without priorities",
    form="{:.3f}×",
    at_least=0.97,
)
PLANNED = Figure("a decision of the planner with 128 requests queued", form="{:.0f} µs", at_most=150.0)
ALL_ON_TIME = Figure(
    "a decision of the planner with 128 requests queued, all on time anyway", form="{:.1f} µs", at_most=1.0
)
LONG_QUEUE = Figure("a decision of the planner with 10,000 requests queued", form="{:.0f} µs", at_most=1000.0)
DECISIONS = {(128, 0): ALL_ON_TIME, (128, 1): PLANNED, (10_000, 1): LONG_QUEUE}
"""Figures by the number of requests queued and the column of the table."""
Floats = NDArray[np.float64]


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

    def policy(kind: PolicyName, name: str, rate: float) -> float:
        return sum(simulate(trace, policy=kind, **options).on_time for trace in traces(name, rate)) / 7500

    def best_of(name: str) -> float:
        return largest_rate(lambda rate: optimum(name, rate), LINE_CAPACITY)

    def goodput_of(kind: PolicyName, name: str) -> float:
        return largest_rate(lambda rate: policy(kind, name, rate), LINE_CAPACITY)

    best = {name: best_of(name) for name in GENERATORS}
    overload = 1.5 * LINE_CAPACITY
    ceiling = optimum("Poisson", overload)
    shares: dict[str, dict[str, float]] = {}
    overloaded: dict[str, float] = {}
    for kind in POLICIES:
        shares[kind] = {name: goodput_of(kind, name) / best[name] for name in GENERATORS}
        overloaded[kind] = policy(kind, "Poisson", overload) / ceiling
        print(f"{kind:44}{''.join(f'{cell:12.3f}' for cell in shares[kind].values())}{overloaded[kind]:16.3f}")
    for name, figure in OF_OPTIMUM.items():
        figure.report(shares["lookahead"][name], note=f"greedy {shares['greedy'][name]:.3f}×")
    OVERLOADED.report(overloaded["lookahead"], note=f"greedy {overloaded['greedy']:.3f}×")


def ours(policy: PolicyName) -> Contestant:
    """Return a live batcher that is given no service time; it rejects requests that would miss their deadlines."""

    def start(loop: VirtualLoop, infer: Infer) -> Ask:
        class Device:
            async def infer(self, batch: si.request.Batch) -> Any:
                return await infer(batch.inputs)

        batcher = si.AdaptiveBatcher(
            max_batch_size=BATCH, policy=policy, max_queue_size=10**6, stack=False, clock=loop.clock
        )
        service = batcher.wrap(Device())

        async def ask(number: int, deadline_ns: int, priority: int) -> Any:
            return (await service.call(si.Request(number, deadline_ns=deadline_ns, priority=priority))).outputs

        return ask

    return Contestant(start, rejections=(si.DeadlineExceeded,))


def urgency(policy: PolicyName) -> tuple[float, float, float]:
    """Return shares on time under overload: of the urgent of two priorities, of all, of all without priorities."""
    trace = arrivals.poisson(1.5 * CAPACITY, 12_000, 1)
    urgent = np.random.default_rng(5).random(len(trace)) < 0.2
    weighted = on_time(ours(policy), trace, 0.05, priorities=np.where(urgent, 0, 1))
    alone = on_time(ours(policy), trace, 0.05)
    return float(weighted[urgent].mean()), float(weighted.mean()), float(alone.mean())


def in_virtual_time() -> None:
    for row, figures in zip(ROWS, OF_ROWS, strict=True):
        print(f"\n{row.name}\n{'':26}{'learned, no settings':>24}")
        found = {policy: measure_row(row, [ours(policy)])[0] for policy in POLICIES}
        for policy, values in found.items():
            print(f"{policy:26}{as_text(values):>24}", flush=True)
        for figure, value, greedy in zip(figures, found["lookahead"], found["greedy"], strict=True):
            note = "; the bar is the best peer's" if figure is BEST_PEER else ""
            figure.report(value, note=f"greedy {greedy:.3f}{note}")
    print("\n20 % urgent at 1.5× capacity, SLO 50 ms, on time; urgent / all / all without priorities")
    shares = {policy: urgency(policy) for policy in POLICIES}
    for policy, cells in shares.items():
        print(f"{policy:26}{as_text(cells):>24}", flush=True)
    urgent, everyone, alone = shares["lookahead"]
    URGENT.report(urgent, note=f"greedy {shares['greedy'][0]:.3f}")
    ALL_PRIORITIES.report(everyone / alone, note=f"{everyone:.3f} with priorities, {alone:.3f} without")


def cost() -> None:
    print(f"\n{'a decision of the planner, median µs':58}{'on time anyway':>16}{'planned':>12}")
    rng = np.random.default_rng(0)
    reports = []
    for name, device, cap in (
        ("device of 5 + 1·n ms, at most 32 rows", LINE, 32),
        ("device of 4 + 0.25·n ms, at most 64 rows", ServiceTime.affine(0.004, 0.00025), 64),
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
            print(f"{name + f', {waiting:,} waiting':58}{cells[0]:16.1f}{cells[1]:12.1f}")
            reports += [(DECISIONS[waiting, at], cells[at], name) for at in (0, 1) if (waiting, at) in DECISIONS]
    for figure, value, name in reports:
        figure.report(value, case=name)


def main() -> None:
    si.warmup()
    simulated()
    in_virtual_time()
    cost()


if __name__ == "__main__":
    main()
