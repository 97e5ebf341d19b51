"""The planner beside the other policies and the clairvoyant optimum; simulated and in virtual time, so deterministic.

    python benchmarks/run.py planner

Part 1: shares of the optimum's goodput (largest rate with 99 % on time), affine 5 + 1·b ms, 32 a batch, SLO 50 ms,
one worker.
Part 2: a live batcher that learns an accelerator; what is measured is in workload.py, and peers/planner.py measures the
peers on the same rows.
Part 3: the cost of a decision.
"""

import statistics
import time
from typing import Any

import numpy as np
from _lib.workload import BATCH, CAPACITY, ROWS, Ask, Contestant, Infer, figures, largest_rate, on_time
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.batching import Lookahead, PolicyName, ServiceTime, clairvoyant_optimum, simulate
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.simulation import arrivals
from streaminfer.testing import VirtualLoop

SEEDS = (1, 2, 3)
LINE = ServiceTime.affine(0.005, 0.001)
LINE_CAPACITY = 32 / 0.037
GENERATORS = {"Poisson": arrivals.poisson, "gamma CV 4": arrivals.gamma, "on-off": arrivals.on_off}
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
    for kind in ("greedy", "lookahead"):
        cells = [goodput_of(kind, name) / best[name] for name in GENERATORS]
        print(
            f"{kind:44}"
            + "".join(f"{cell:12.3f}" for cell in cells)
            + f"{policy(kind, 'Poisson', overload) / ceiling:16.3f}"
        )
    print(f"{'bar':44}{'≥ 0.970':>12}{'≥ 0.880':>12}{'≥ 0.940':>12}{'≥ 0.990':>16}")


def ours(policy: PolicyName) -> Contestant:
    """A live batcher that is told no service time; callers are told no by their deadlines."""

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

    return Contestant(start, refusals=(si.DeadlineExceeded,))


def urgency(policy: PolicyName) -> str:
    """Two priorities under overload, and the same without."""
    trace = arrivals.poisson(1.5 * CAPACITY, 12_000, 1)
    urgent = np.random.default_rng(5).random(len(trace)) < 0.2
    weighted = on_time(ours(policy), trace, 0.05, priorities=np.where(urgent, 0, 1))
    return f"{weighted[urgent].mean():.3f} / {weighted.mean():.3f} / {on_time(ours(policy), trace, 0.05).mean():.3f}"


def in_virtual_time() -> None:
    policies: tuple[PolicyName, ...] = ("greedy", "lookahead")
    for row in ROWS:
        print(f"\n{row.name}\n{'':26}{'learned, no settings':>24}   bar")
        for policy in policies:
            print(
                f"{policy:26}{figures(row, [ours(policy)])[0]:>24}   {row.bar if policy == 'lookahead' else ''}",
                flush=True,
            )
    print("\n20 % urgent at 1.5× capacity, SLO 50 ms, on time; urgent / all / all without priorities")
    for policy in policies:
        bar = "≥ 0.99 / 0.97 of the last" if policy == "lookahead" else ""
        print(f"{policy:26}{urgency(policy):>24}   {bar}", flush=True)


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
