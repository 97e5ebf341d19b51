"""Placement plans: exact ones by size, beside the greedy choice and simple rules; repair; prediction and simulation.

Clusters and sites lie on a map; round-trip times grow with the distance. Times are those of one process: wall
clock, and CPU in parentheses, because the two differ on a busy machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from _lib.figures import Figure
from _lib.placements import random_problem
from numpy.typing import NDArray

from streaminfer.placement import Plan, Problem, plan, repair, replay
from streaminfer.placement.solver import kernels
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.greedy import greedy_counts
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.program import solve

T = TypeVar("T")
GAP = Figure("gap of an exact plan to the proven bound, worst instance", form="{:.2f} %", at_most=0.1)
SMALL = Figure("slowest exact plan, 100 clusters × 20 sites × 3 variants", form="{:.1f} s", at_most=5)
LARGE = Figure("slowest exact plan, 500 clusters × 60 sites × 3 variants", form="{:.1f} s", at_most=30)
GREEDY = Figure("cost of a greedy plan, mean of the instances", over="the exact plan", form="{:.3f}×", at_most=1.05)
RULE = Figure("cost of a plan by a simple rule, mean of the instances", over="the exact plan")
REPAIR = Figure("repair of a plan of 500 clusters × 60 sites that lost a site", form="{:.0f} ms", at_most=100)
UNSERVED = Figure("clusters that are unserved after a repair", form="{:.0f}", at_most=0)
WITHIN = Figure("clusters whose predicted p99 is within 10 % of the simulated one", form="{:.1f} %", at_least=95)
LOWEST = Figure("predicted p99, lowest of all clusters", over="the simulated p99", form="{:.3f}×", at_least=0.9)
SIZES = ((100, 20, SMALL, 20.0), (500, 60, LARGE, 120.0))
"""Clusters, sites, figure, and a time limit in seconds above the figure's bar, to show by how much a plan misses it."""


def timed(run: Callable[[], T]) -> tuple[T, float, float]:
    """Return a result, and its wall-clock and CPU time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def by_rule(instance: Instance, rank: NDArray[np.float64]) -> float:
    """Return the cost if each cluster, largest first, goes to the pools of lowest rank with room; infinity if none."""
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
    for clusters, sites, figure, limit_s in SIZES:
        gaps, walls = [], []
        for seed in range(seeds):
            problem = random_problem(clusters, sites, seed)
            found, wall_s, cpu_s = timed(lambda p=problem, limit_s=limit_s: plan(p, time_limit_s=limit_s))  # type: ignore[misc]
            print(
                f"exact {clusters} × {sites} × 3, seed {seed}: {wall_s:7.2f} s ({cpu_s:.2f} s CPU), "
                f"gap {found.gap:.3%}, cost {found.cost:.2f}",
                flush=True,
            )
            plans.append((problem, found))
            gaps.append(100 * found.gap)
            walls.append(wall_s)
        GAP.report(max(gaps), case=f"{clusters} clusters × {sites} sites × 3 variants", note=f"least {min(gaps):.2f} %")
        figure.report(max(walls), note=f"fastest {min(walls):.1f} s")
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
        figure, case = (GREEDY, "") if name == "greedy" else (RULE, f"{name} pool with room")
        note = f"{len(values)} instances, most {max(values):.2f}×; no plan for {refused[name]}"
        figure.report(float(statistics.mean(values)), case=case, note=note)


def repairs(problem: Problem, rounds: int) -> None:
    found = plan(problem, method="greedy")
    times, unserved = [], 0
    for lost in found.sites[:rounds]:
        began, cpu = time.perf_counter(), time.process_time()
        repaired = repair(found, [lost])
        times.append((1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu)))
        unserved += len(repaired.unserved)
    wall, busy = zip(*times, strict=True)
    REPAIR.report(wall, note=f"CPU {statistics.median(busy):.0f} ms")
    UNSERVED.report(unserved)


def simulated(plans: list[tuple[Problem, Plan]]) -> None:
    ratios = [it.ratio for _, found in plans for it in replay(found).clusters.values()]
    within = statistics.mean(float(abs(ratio - 1) <= 0.1) for ratio in ratios)
    WITHIN.report(100 * within, note=f"{len(ratios)} clusters")
    LOWEST.report(min(ratios), note=f"median {statistics.median(ratios):.3f}×, highest {max(ratios):.3f}×")


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
