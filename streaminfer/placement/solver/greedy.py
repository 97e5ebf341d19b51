"""A greedy choice of replicas, for repairs and large problems.

*Idea.* State by state, the algorithm adds replicas for unserved demand. It places the next replica where a unit of
demand costs least, including the price of a site that is not yet used. When all demand is served, it removes unneeded
sites and replicas, the most expensive first. A local search then tries to remove each site and each replica, or to add
a replica, within a limit on its work.

*Bound.* Without prices of sites, and if no limit binds, the demand that n replicas serve is a submodular function of n.
So the cost is at most 1 + ln(D / d) times the least, with D the largest total demand and d the smallest gain of a
replica (Wolsey 1982). In practice the bound that each plan states matters more: :func:`lower_bound` is a feasible
solution of the dual of the linear relaxation.

*Guarantee.* If the greedy choice meets a limit with demand left, it returns ``None``, and the callers solve the exact
program. So no cluster is unserved while there is capacity.

Reference: L. A. Wolsey, "An analysis of the greedy algorithm for the submodular set covering problem" (1982).
"""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.solver.flows import Cut
from streaminfer.placement.solver.instance import Instance

__all__ = ["complete", "greedy_counts", "lower_bound", "serve_most", "trimmed"]

_EXCHANGE_WORK = 3e7
"""Limit of states × clusters × (groups of replicas)² × exchanges: about five seconds of work."""

_MIN_IMPROVEMENT = 1 - 1e-9

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def greedy_counts(instance: Instance) -> Floats | None:
    """Choose replicas for all demand, drop unneeded ones, and exchange replicas for cheaper ones.

    Returns:
        Replicas of each pool; ``None`` if the greedy choice meets a limit.
    """
    counts = trimmed(instance, np.zeros(len(instance.pools)))
    return None if counts is None else _exchange(instance, counts)


def trimmed(
    instance: Instance, start: Floats, violated: list[Cut] | None = None, *, retained: Floats | None = None
) -> Floats | None:
    """Add replicas until all demand is served, then drop unneeded ones.

    Args:
        instance: pools to choose from.
        start: replicas to begin with.
        violated: list that collects the violated cuts.
        retained: replicas that stay, needed or not; ``None``: none.

    Returns:
        Replicas of each pool; ``None`` if a limit prevents this.
    """
    counts = complete(instance, start, violated)
    return None if counts is None else _drop_unneeded(instance, counts, retained)


def complete(
    instance: Instance, counts: Floats, violated: list[Cut] | None = None, banned: Bools | None = None
) -> Floats | None:
    """Add replicas until all demand is served in every state; ``None`` if a limit prevents this."""
    counts = counts.copy()
    states = range(len(instance.flows.rates))
    return counts if all(_serve(instance, state, counts, violated, banned) for state in states) else None


def serve_most(instance: Instance) -> Floats:
    """Choose replicas for as much demand as the greedy choice can serve."""
    counts = np.zeros(len(instance.pools))
    for state in range(len(instance.flows.rates)):
        _serve(instance, state, counts)
    return counts


def lower_bound(instance: Instance) -> float:
    """Return a lower bound on the cost of any plan: each demand at the least price of a request per second."""
    unit = np.where(instance.max_counts > 0, instance.prices / instance.pool_rates, np.inf)
    bounds = [0.0]
    for allowed, rates in zip(instance.flows.allowed, instance.flows.rates, strict=True):
        cheapest = np.where(allowed, unit, np.inf).min(axis=1, initial=np.inf)
        bounds.append(float(rates[rates > 0] @ cheapest[rates > 0]))
    return max(bounds)


def _serve(
    instance: Instance, state: int, counts: Floats, violated: list[Cut] | None = None, banned: Bools | None = None
) -> bool:
    """Add replicas until all demand is served in one state."""
    flows = instance.flows
    flow = flows.empty()
    clusters, pools = flows.extend(state, counts, flow)
    lost = instance.candidates.states[state].lost
    available = np.ones(len(counts), bool) if banned is None else ~banned
    available &= ~instance.uses[list(lost)].any(axis=0)
    while (unserved := flows.unserved(state, flow)).any():
        if violated is not None:
            violated.append(Cut(state, clusters, pools))
        unserved_clusters = np.flatnonzero(unserved)
        demand = unserved[unserved_clusters] @ flows.allowed[state][unserved_clusters] / flows.unit
        if (pool := _cheapest(instance, counts, demand, available)) < 0:
            # no pool for the unserved clusters: look for a pool that lets other clusters make room for them
            demand = np.where(flows.allowed[state][clusters].any(axis=0), unserved.sum() / flows.unit, 0.0)
            if (pool := _cheapest(instance, counts, demand, available)) < 0:
                return False
        needs = instance.needs[:, pool] > 0
        room = ((instance.limits - instance.needs @ counts)[needs] / instance.needs[needs, pool]).min(initial=np.inf)
        counts[pool] += max(1.0, min(np.floor(room), demand[pool] / instance.pool_rates[pool] // 2))
        clusters, pools = flows.extend(state, counts, flow)
    return True


def _exchange(instance: Instance, counts: Floats) -> Floats:
    """Remove a site or a replica, or add a replica, if the result is cheaper; repeat while it helps."""
    cost = instance.cost(counts)
    tries = int(_EXCHANGE_WORK / (instance.flows.rates.size * (1 + int(np.count_nonzero(counts))) ** 2))
    is_better = True
    while is_better:
        is_better = False
        for start, retained, banned in itertools.islice(_neighbors(instance, counts), tries):
            tries -= 1
            other = complete(instance, start, banned=banned)
            if (
                other is not None
                and (new_cost := instance.cost(other := _drop_unneeded(instance, other, retained)))
                < cost * _MIN_IMPROVEMENT
            ):
                counts, cost, is_better = other, new_cost, True
                break
    return counts


def _neighbors(instance: Instance, counts: Floats) -> Iterator[tuple[Floats, Floats, Bools]]:
    """Yield replicas to start from, replicas to keep, and banned pools, the most expensive first."""
    no_replicas, no_pools = np.zeros(len(counts)), np.zeros(len(counts), bool)
    for site in np.argsort(-instance.site_prices, kind="stable"):
        if counts[removed := instance.uses[site]].any():
            yield np.where(removed, 0.0, counts), no_replicas, removed
    most_expensive = np.argsort(-instance.prices, kind="stable")
    for pool in most_expensive[counts[most_expensive] > 0]:
        removed = np.arange(len(counts)) == pool
        yield counts - removed, no_replicas, removed
    spare = instance.limits - instance.needs @ counts
    unused = ~(instance.uses & (counts > 0)).any(axis=1)
    fits: Bools = np.asarray((instance.needs <= spare[:, None] + 1e-9).all(axis=0) & ~instance.uses[unused].any(axis=0))
    for pool in most_expensive[fits[most_expensive]]:
        added = (np.arange(len(counts)) == pool).astype(np.float64)
        yield counts + added, added, no_pools


def _cheapest(instance: Instance, counts: Floats, demand: Floats, available: Bools) -> int:
    """Return the pool with the next replica that serves demand at the least price; -1 if none fits."""
    spare = instance.limits - instance.needs @ counts
    fits = (instance.needs <= spare[:, None] + 1e-9).all(axis=0)
    gain = np.minimum(instance.pool_rates, demand)
    usable = fits & available & (gain > 0)
    if not usable.any():
        return -1
    unused = ~(instance.uses & (counts > 0)).any(axis=1)
    opening_price = instance.site_prices * unused @ instance.uses
    full_count = np.ceil(np.minimum(demand / instance.pool_rates, instance.max_counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        price = (instance.prices + opening_price / np.maximum(full_count, 1.0)) / gain
    return int(np.where(usable, price, np.inf).argmin())


def _drop_unneeded(instance: Instance, counts: Floats, retained: Floats | None = None) -> Floats:
    """Remove unneeded sites, then unneeded replicas, except the ones in ``retained``."""
    minimum = np.zeros_like(counts) if retained is None else retained
    flows = [instance.flows.empty() for _ in instance.flows.rates]
    for state, flow in enumerate(flows):
        instance.flows.extend(state, counts, flow)

    def accept(fewer: Floats) -> bool:
        """Continue with fewer replicas, and their flows, if they serve all demand too."""
        nonlocal counts, flows
        reduced = [flow.copy() for flow in flows]
        for state, flow in enumerate(reduced):
            _reduce_flow(flow, instance.flows.capacity(fewer))
            instance.flows.extend(state, fewer, flow)
            if instance.flows.unserved(state, flow).any():
                return False
        counts, flows = fewer, reduced
        return True

    used = [site for site in np.flatnonzero(instance.site_prices) if (instance.uses[site] & (counts > minimum)).any()]
    for site in sorted(used, key=lambda site: -instance.site_prices[site]):
        accept(np.where(instance.uses[site], minimum, counts))
    for pool in np.argsort(-instance.prices, kind="stable"):
        one = np.arange(counts.size) == pool
        while counts[pool] > minimum[pool] and accept(counts - one):
            pass
    return counts


def _reduce_flow(flow: Ints, capacity: Ints) -> None:
    """Reduce the flow of each pool to its capacity, from the last clusters first."""
    for pool in np.flatnonzero(flow.sum(axis=0) > capacity):
        cumulative = np.minimum(np.cumsum(flow[:, pool]), capacity[pool])
        flow[:, pool] = np.diff(cumulative, prepend=0)
