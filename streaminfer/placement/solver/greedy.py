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

_CHEAPER = 1 - 1e-9

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
    instance: Instance, start: Floats, seen: list[Cut] | None = None, *, kept: Floats | None = None
) -> Floats | None:
    """Add replicas until all demand is served, then drop unneeded ones.

    Args:
        instance: pools to choose from.
        start: replicas to begin with.
        seen: list that collects the violated cuts.
        kept: replicas that stay, needed or not; ``None``: none.

    Returns:
        Replicas of each pool; ``None`` if a limit prevents this.
    """
    counts = complete(instance, start, seen)
    return None if counts is None else _drop(instance, counts, kept)


def complete(
    instance: Instance, counts: Floats, seen: list[Cut] | None = None, banned: Bools | None = None
) -> Floats | None:
    """Add replicas until all demand is served in every state; ``None`` if a limit prevents this."""
    counts = counts.copy()
    states = range(len(instance.flows.rates))
    return counts if all(_serve(instance, state, counts, seen, banned) for state in states) else None


def serve_most(instance: Instance) -> Floats:
    """Choose replicas for as much demand as the greedy choice can serve."""
    counts = np.zeros(len(instance.pools))
    for state in range(len(instance.flows.rates)):
        _serve(instance, state, counts)
    return counts


def lower_bound(instance: Instance) -> float:
    """Return a lower bound on the cost of any plan: each demand at the least price of a request per second."""
    unit = np.where(instance.most > 0, instance.prices / instance.pool_rates, np.inf)
    bounds = [0.0]
    for allowed, rates in zip(instance.flows.allowed, instance.flows.rates, strict=True):
        cheapest = np.where(allowed, unit, np.inf).min(axis=1, initial=np.inf)
        bounds.append(float(rates[rates > 0] @ cheapest[rates > 0]))
    return max(bounds)


def _serve(
    instance: Instance, state: int, counts: Floats, seen: list[Cut] | None = None, banned: Bools | None = None
) -> bool:
    """Add replicas until all demand is served in one state."""
    flows = instance.flows
    flow = flows.empty()
    clusters, pools = flows.extend(state, counts, flow)
    lost = instance.candidates.states[state].lost
    alive = np.ones(len(counts), bool) if banned is None else ~banned
    alive &= ~instance.uses[list(lost)].any(axis=0)
    while (unserved := flows.unserved(state, flow)).any():
        if seen is not None:
            seen.append(Cut(state, clusters, pools))
        waiting = np.flatnonzero(unserved)
        wanted = unserved[waiting] @ flows.allowed[state][waiting] / flows.unit
        if (pool := _cheapest(instance, counts, wanted, alive)) < 0:
            # no pool for the unserved clusters: look for a pool that lets other clusters make room for them
            wanted = np.where(flows.allowed[state][clusters].any(axis=0), unserved.sum() / flows.unit, 0.0)
            if (pool := _cheapest(instance, counts, wanted, alive)) < 0:
                return False
        needs = instance.needs[:, pool] > 0
        room = ((instance.limits - instance.needs @ counts)[needs] / instance.needs[needs, pool]).min(initial=np.inf)
        counts[pool] += max(1.0, min(np.floor(room), wanted[pool] / instance.pool_rates[pool] // 2))
        clusters, pools = flows.extend(state, counts, flow)
    return True


def _exchange(instance: Instance, counts: Floats) -> Floats:
    """Remove a site or a replica, or add a replica, if the result is cheaper; repeat while it helps."""
    cost = instance.cost(counts)
    tries = int(_EXCHANGE_WORK / (instance.flows.rates.size * (1 + int(np.count_nonzero(counts))) ** 2))
    is_better = True
    while is_better:
        is_better = False
        for start, kept, banned in itertools.islice(_neighbors(instance, counts), tries):
            tries -= 1
            other = complete(instance, start, banned=banned)
            if other is not None and (less := instance.cost(other := _drop(instance, other, kept))) < cost * _CHEAPER:
                counts, cost, is_better = other, less, True
                break
    return counts


def _neighbors(instance: Instance, counts: Floats) -> Iterator[tuple[Floats, Floats, Bools]]:
    """Yield replicas to start from, replicas to keep, and banned pools, the most expensive first."""
    nothing, none = np.zeros(len(counts)), np.zeros(len(counts), bool)
    for site in np.argsort(-instance.site_prices, kind="stable"):
        if counts[gone := instance.uses[site]].any():
            yield np.where(gone, 0.0, counts), nothing, gone
    dearest = np.argsort(-instance.prices, kind="stable")
    for pool in dearest[counts[dearest] > 0]:
        gone = np.arange(len(counts)) == pool
        yield counts - gone, nothing, gone
    spare = instance.limits - instance.needs @ counts
    unused = ~(instance.uses & (counts > 0)).any(axis=1)
    fits: Bools = np.asarray((instance.needs <= spare[:, None] + 1e-9).all(axis=0) & ~instance.uses[unused].any(axis=0))
    for pool in dearest[fits[dearest]]:
        more = (np.arange(len(counts)) == pool).astype(np.float64)
        yield counts + more, more, none


def _cheapest(instance: Instance, counts: Floats, wanted: Floats, alive: Bools) -> int:
    """Return the pool with the next replica that serves demand at the least price; -1 if none fits."""
    spare = instance.limits - instance.needs @ counts
    fits = (instance.needs <= spare[:, None] + 1e-9).all(axis=0)
    gain = np.minimum(instance.pool_rates, wanted)
    usable = fits & alive & (gain > 0)
    if not usable.any():
        return -1
    unused = ~(instance.uses & (counts > 0)).any(axis=1)
    opening = instance.site_prices * unused @ instance.uses
    fully = np.ceil(np.minimum(wanted / instance.pool_rates, instance.most))
    with np.errstate(divide="ignore", invalid="ignore"):
        price = (instance.prices + opening / np.maximum(fully, 1.0)) / gain
    return int(np.where(usable, price, np.inf).argmin())


def _drop(instance: Instance, counts: Floats, kept: Floats | None = None) -> Floats:
    """Remove unneeded sites, then unneeded replicas, except the ones in ``kept``."""
    least = np.zeros_like(counts) if kept is None else kept
    held = _Held(instance, counts)
    used = [site for site in np.flatnonzero(instance.site_prices) if (instance.uses[site] & (counts > least)).any()]
    for site in sorted(used, key=lambda site: -instance.site_prices[site]):
        held.try_counts(np.where(instance.uses[site], least, held.counts))
    for pool in np.argsort(-instance.prices, kind="stable"):
        while held.counts[pool] > least[pool]:
            fewer = held.counts.copy()
            fewer[pool] -= 1
            if not held.try_counts(fewer):
                break
    return held.counts


class _Held:
    """Replicas with a flow for each state, which is updated while replicas are removed."""

    def __init__(self, instance: Instance, counts: Floats) -> None:
        self.instance = instance
        self.counts = counts
        self.flows = [instance.flows.empty() for _ in instance.flows.rates]
        for state, flow in enumerate(self.flows):
            instance.flows.extend(state, counts, flow)

    def try_counts(self, counts: Floats) -> bool:
        """Accept these replicas if they serve all demand too."""
        changed = []
        for state, flow in enumerate(self.flows):
            less = flow.copy()
            _shrink(less, self.instance.flows.capacity(counts))
            self.instance.flows.extend(state, counts, less)
            if self.instance.flows.unserved(state, less).any():
                return False
            changed.append(less)
        self.counts, self.flows = counts, changed
        return True


def _shrink(flow: Ints, capacity: Ints) -> None:
    """Reduce the flow of each pool to its capacity, from the last clusters first."""
    for pool in np.flatnonzero(flow.sum(axis=0) > capacity):
        kept = np.minimum(np.cumsum(flow[:, pool]), capacity[pool])
        flow[:, pool] = np.diff(kept, prepend=0)
