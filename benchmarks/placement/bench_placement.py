"""Plans: exact ones by size, the greedy choice and simple rules beside them, repair, prediction beside simulation.

Clusters and sites lie on a map; round-trip times grow with the distance. Times are of one process: wall clock, and CPU
in parentheses, because the two differ on a busy machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from _lib.placements import random_problem
from numpy.typing import NDArray

from streaminfer.placement import Plan, Problem, plan, repair, replay
from streaminfer.placement.solver import kernels
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.greedy import greedy_counts
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.program import solve

T = TypeVar("T")
SIZES = ((100, 20, 5.0), (500, 60, 30.0))


def timed(run: Callable[[], T]) -> tuple[T, str]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, f"{time.perf_counter() - wall:7.2f} s ({time.process_time() - cpu:.2f} s CPU)"


def by_rule(instance: Instance, rank: NDArray[np.float64]) -> float:
    """Cost where each cluster, the largest first, goes to the pool of the least rank that has room."""
    counts = np.zeros(len(instance.pools))
    spare = np.zeros(len(instance.pools))
    rates, allowed = instance.flows.rates[0], instance.flows.allowed[0]
    for c in np.argsort(-rates):
        left = rates[c]
        for p in np.argsort(np.where(allowed[c], rank[c], np.inf), kind="stable")[: allowed[c].sum()]:
            while left > 1e-9:
                taken = min(left, spare[p])
                spare[p] -= taken
                left -= taken
                if left <= 1e-9 or (instance.needs @ counts + instance.needs[:, p] > instance.limits + 1e-9).any():
                    break
                counts[p] += 1
                spare[p] += instance.pool_rates[p]
            if left <= 1e-9:
                break
        if left > 1e-9:
            return float("inf")
    return instance.cost(counts)


def nearest_rank(instance: Instance, problem: Problem) -> NDArray[np.float64]:
    medians = np.array(
        [[problem.links[c.name][site.name].rtt.quantile(0.5) for site in problem.sites] for c in problem.clusters]
    )
    unit = instance.prices / instance.pool_rates
    rank: NDArray[np.float64] = medians[:, [pool.sites[0] for pool in instance.pools]] + 1e-6 * unit / unit.max()
    return rank


def exact_sizes(seeds: int) -> list[tuple[Problem, Plan]]:
    plans = []
    for clusters, sites, bar_s in SIZES:
        for seed in range(seeds):
            problem = random_problem(clusters, sites, seed)
            found, text = timed(lambda p=problem, limit=4 * bar_s: plan(p, time_limit_s=limit))  # type: ignore[misc]
            print(
                f"exact {clusters} × {sites} × 3, seed {seed}: {text}, gap {found.gap:.3%}, cost {found.cost:.2f}",
                flush=True,
            )
            plans.append((problem, found))
    return plans


def greedy_instances(count: int) -> None:
    ratios: dict[str, list[float]] = {"greedy": [], "nearest": [], "cheapest": []}
    refused = dict.fromkeys(ratios, 0)
    for seed in range(count):
        problem = random_problem(30, 8, 1000 + seed)
        instance = Instance(find_candidates(problem))
        best = solve(instance, gap=0.001, time_limit_s=20)
        if best is None:
            continue
        counts = greedy_counts(instance)
        unit = np.broadcast_to(instance.prices / instance.pool_rates, instance.flows.allowed[0].shape)
        costs = {
            "greedy": float("inf") if counts is None else instance.cost(counts),
            "nearest": by_rule(instance, nearest_rank(instance, problem)),
            "cheapest": by_rule(instance, unit),
        }
        for name, cost in costs.items():
            if np.isfinite(cost):
                ratios[name].append(cost / best.value)
            else:
                refused[name] += 1
    for name, values in ratios.items():
        print(
            f"{name:9} over exact cost, {len(values)} instances: mean {statistics.mean(values):.3f}, "
            f"median {statistics.median(values):.3f}, most {max(values):.3f}; no plan for {refused[name]}",
            flush=True,
        )


def repairs(problem: Problem, rounds: int) -> None:
    found = plan(problem, method="greedy")
    times, unserved = [], 0
    for lost in found.sites[:rounds]:
        began, cpu = time.perf_counter(), time.process_time()
        repaired = repair(found, [lost])
        times.append((1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu)))
        unserved += len(repaired.unserved)
    wall, busy = (sorted(values) for values in zip(*times, strict=True))
    print(
        f"repair {len(problem.clusters)} × {len(problem.sites)} after the loss of a site: "
        f"median {statistics.median(wall):.0f} ms "
        f"({statistics.median(busy):.0f} ms CPU), most {wall[-1]:.0f} ms ({busy[-1]:.0f} ms CPU), unserved {unserved}",
        flush=True,
    )


def simulated(plans: list[tuple[Problem, Plan]]) -> None:
    ratios = [it.ratio for _, found in plans for it in replay(found).clusters.values()]
    within = statistics.mean(abs(ratio - 1) <= 0.1 for ratio in ratios)
    print(
        f"predicted over simulated p99, {len(ratios)} clusters: within 10 % {within:.1%}, "
        f"least {min(ratios):.3f}, median {statistics.median(ratios):.3f}, most {max(ratios):.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="instances of each size")
    parser.add_argument("--instances", type=int, default=50, help="instances for the greedy choice")
    arguments = parser.parse_args()
    kernels.warm_up()
    plans = exact_sizes(arguments.seeds)
    greedy_instances(arguments.instances)
    repairs(plans[-1][0], 10)
    simulated(plans[: arguments.seeds])


if __name__ == "__main__":
    main()
