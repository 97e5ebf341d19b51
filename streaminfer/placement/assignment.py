"""Assignment of clusters to replicas, and the plan that follows from it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.plan_record import Assignment, Plan, ReplicaGroup
from streaminfer.placement.solver.instance import Instance

__all__ = ["make_plan"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def make_plan(instance: Instance, counts: Floats, *, bound: float) -> Plan:
    """Make a plan from replicas.

    Args:
        instance: pools that the replicas were chosen from.
        counts: replicas of each pool.
        bound: cost or quality that no plan beats.
    """
    problem = instance.candidates.problem
    used = np.flatnonzero(counts > 0)
    flows = {_key(instance, state): _flow(instance, state, counts) for state in instance.normal()}
    value = instance.cost(counts)
    quality = instance.quality(counts)
    objective = quality if instance.settings.budget is not None else value
    unserved: dict[str, float] = {}
    for state in instance.normal():
        unserved_flow = instance.flows.unserved(state, flows[_key(instance, state)])
        for c in np.flatnonzero(unserved_flow):
            name = problem.clusters[int(c)].name
            unserved[name] = max(unserved.get(name, 0.0), float(unserved_flow[c]) / instance.flows.unit)
    return Plan(
        problem=problem,
        replicas=tuple(_group(instance, int(p), int(counts[p])) for p in used),
        assignments={key: _shares(instance, flow, used) for key, flow in flows.items()},
        cost=value,
        quality=quality,
        bound=bound,
        gap=abs(objective - bound) / max(abs(objective), 1e-12),
        binding=tuple(_binding(instance, counts, value)),
        unserved=unserved,
        instance=instance,
        counts=counts,
        flows=flows,
    )


def _group(instance: Instance, p: int, count: int) -> ReplicaGroup:
    pool = instance.pools[p]
    return ReplicaGroup(
        model=pool.model.name,
        variant=pool.variant.name,
        sites=tuple(instance.candidates.problem.sites[s].name for s in pool.sites),
        kinds=pool.kinds,
        replicas=count,
        max_rate=pool.rate,
        price=pool.price * count,
    )


def _key(instance: Instance, state: int) -> tuple[int, str]:
    entry = instance.candidates.states[state]
    return entry.hour, instance.candidates.problem.scenarios[entry.scenario].name


def _shares(instance: Instance, flow: Ints, used: NDArray[np.intp]) -> Assignment:
    index = {int(p): at for at, p in enumerate(used)}
    clusters = instance.candidates.problem.clusters
    totals = flow.sum(axis=1)
    assignment: dict[str, dict[int, float]] = {}
    for c, p in np.argwhere(flow).tolist():
        assignment.setdefault(clusters[c].name, {})[index[p]] = float(flow[c, p] / totals[c])
    return assignment


def _flow(instance: Instance, state: int, counts: Floats) -> Ints:
    """Assign each cluster to near pools, the fewest choices first; with a budget, to pools of the best quality."""
    flow = instance.flows.empty()
    if instance.settings.budget is not None:
        for quality in instance.steps():
            instance.flows.extend(state, counts, flow, pools=instance.qualities >= quality)
        return flow
    spare = instance.flows.capacity(counts)
    allowed = instance.flows.allowed[state] & (counts > 0)
    limits = instance.flows.limits(state)
    distance = instance.distances
    for c in np.argsort(allowed.sum(axis=1), kind="stable"):
        remaining = int(limits[c].max(initial=0))
        choices = np.flatnonzero(allowed[c] & (spare > 0))
        for p in choices[np.argsort(distance[c, choices], kind="stable")]:
            amount = min(remaining, int(spare[p]))
            flow[c, p] += amount
            spare[p] -= amount
            remaining -= amount
            if not remaining:
                break
    instance.flows.extend(state, counts, flow)
    return flow


def _binding(instance: Instance, counts: Floats, cost: float) -> Iterator[str]:
    """Yield the limits in use that leave no room for one more replica of any pool."""
    problem, settings = instance.candidates.problem, instance.settings
    spare = instance.limits - instance.needs @ counts
    for row, resource in enumerate(instance.candidates.resources):
        needs = instance.needs[row]
        if (instance.needs[row] @ counts) and spare[row] < needs[needs > 0].min() - 1e-9:
            yield f"{resource.what} of {resource.kind!r} at site {problem.sites[resource.site].name!r}"
    if settings.budget is not None and instance.pools and cost > settings.budget - instance.prices.min():
        yield f"the budget of {settings.budget:.6g}"
    if settings.migrations is not None and instance.started(counts) == settings.migrations:
        yield f"the budget of {settings.migrations} started replicas"
