"""`Candidates`: every way to run a variant, with the clusters that it can serve in time and its needs.

*Idea.* A *pool* is a variant at a site (a path of sites for shards), on a kind of device, and with one of a few levels
as the maximum load of its replicas. The level fixes the distribution of the delay at a replica. So a table of booleans
tells before the optimization whether a pool keeps the promise of a cluster. The solver only chooses the number of
replicas of each pool.

*Complexity.* The table costs one product of matrices for each group of clusters with the same SLO, access profile and
model: 500 clusters × 60 sites × 15 pools × 500 bins take half a second.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.problem import AccessProfile, Link, Model, Problem, ServiceClass, UserCluster, Variant
from streaminfer.placement.solver.delays import LEVELS, chain_delays, chain_rate, share_within
from streaminfer.placement.solver.latency import BINS, histograms, rest_within

__all__ = ["Candidates", "Pool", "Resource", "State", "find_candidates", "in_time", "path_latency"]

_LOAD_STEPS = 100
_LOAD_ROUNDING = 1e-6

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@attrs.frozen
class Pool:
    """Equal replicas with equal load.

    Attributes:
        model: the model.
        variant: the variant.
        sites: index of the site of each shard.
        kinds: kind of device of each shard.
        level: load of a replica as a share of its largest throughput.
        rate: requests per second of a replica at that load.
        price: price of a replica.
    """

    model: Model
    variant: Variant
    sites: tuple[int, ...]
    kinds: tuple[str, ...]
    level: float
    rate: float
    price: float

    @property
    def home(self) -> tuple[Any, ...]:
        """Model, variant, sites and kinds of device: the identity of the pool without its load."""
        return self.model.name, self.variant.name, self.sites, self.kinds


@attrs.frozen
class Resource:
    """The slots or the memory of the devices of one kind at a site."""

    site: int
    kind: str
    what: str
    limit: float


@attrs.frozen
class State:
    """Conditions in which the plan must serve all demand: an hour of a scenario, with or without lost sites."""

    hour: int
    scenario: int
    lost: tuple[int, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class Candidates:
    """The pools of a problem, as arrays over clusters (c), pools (p), sites (s) and resources (r).

    Attributes:
        problem: the problem.
        pools: the pools.
        resources: the limited resources.
        needs: shape (r, p), what a replica occupies of a resource.
        uses: shape (s, p), whether a pool uses a site.
        serves: shape (c, p), whether a pool has the cluster's model and the cluster can reach it.
        meets_residency: shape (c, p), whether data stay in the region that the cluster requires.
        meets_quality: shape (c, p), whether the quality is enough.
        in_time: shape (scenarios, c, p), whether the promise holds.
        states: states of the plan, first the states without losses.
        rates: shape (states, c), requests per second.
    """

    problem: Problem
    pools: tuple[Pool, ...]
    resources: tuple[Resource, ...]
    needs: Floats
    uses: Bools
    serves: Bools
    meets_residency: Bools
    meets_quality: Bools
    in_time: Bools
    states: tuple[State, ...]
    rates: Floats

    @property
    def allowed(self) -> Bools:
        """Shape (scenarios, c, p): whether a pool can serve a cluster as promised."""
        return self.in_time & (self.serves & self.meets_residency & self.meets_quality)


def find_candidates(problem: Problem, hours: tuple[int, ...] | None = None) -> Candidates:
    """List the pools of a problem.

    Args:
        problem: the problem.
        hours: hours in which the plan must hold; ``None``: all.
    """
    pools = tuple(_pools(problem))
    resources = tuple(_resources(problem))
    index = {(resource.site, resource.kind, resource.what): row for row, resource in enumerate(resources)}
    needs = np.zeros((len(resources), len(pools)))
    uses = np.zeros((len(problem.sites), len(pools)), bool)
    for column, pool in enumerate(pools):
        for shard, site, kind in zip(pool.variant.shards, pool.sites, pool.kinds, strict=True):
            uses[site, column] = True
            needs[index[site, kind, "slots"], column] += shard.slots
            if (site, kind, "memory") in index:
                needs[index[site, kind, "memory"], column] += shard.memory_bytes
    states = _states(problem, range(problem.hours) if hours is None else hours)

    def of_each(fits: Callable[[UserCluster, Pool], bool]) -> Bools:
        """Return whether a condition holds for each cluster and pool, shape (c, p)."""
        return np.array([[fits(c, pool) for pool in pools] for c in problem.clusters], bool)

    def is_reachable(cluster: UserCluster, pool: Pool) -> bool:
        links = problem.links.get(cluster.name, ())
        return cluster.model == pool.model.name and problem.sites[pool.sites[0]].name in links

    quality = np.array([pool.variant.quality for pool in pools])
    promises = [(cluster, problem.promise_of(cluster)) for cluster in problem.clusters]
    min_quality = np.array([promise.min_quality for _, promise in promises])
    return Candidates(
        problem=problem,
        pools=pools,
        resources=resources,
        needs=needs,
        uses=uses,
        serves=of_each(is_reachable),
        meets_residency=of_each(
            lambda c, pool: all(c.residency in (None, *problem.sites[s].regions) for s in pool.sites)
        ),
        meets_quality=quality[None, :] >= min_quality[:, None],
        in_time=np.array([in_time(problem, promises, pools, scenario) for scenario in range(len(problem.scenarios))]),
        states=states,
        rates=np.array([_rates(problem, state) for state in states]),
    )


def _pools(problem: Problem) -> Iterator[Pool]:
    for model in problem.models:
        for variant in model.variants:
            for path in itertools.product(*(_places(problem, shard.service_time) for shard in variant.shards)):
                sites, kinds = tuple(site for site, _ in path), tuple(kind for _, kind in path)
                if not all(a == b or _site_link(problem, a, b) for a, b in itertools.pairwise(sites)):
                    continue
                price = sum(
                    shard.slots * next(group.price for group in problem.sites[site].devices if group.kind == kind)
                    for shard, site, kind in zip(variant.shards, sites, kinds, strict=True)
                )
                stages = tuple(shard.service_time[kind] for shard, kind in zip(variant.shards, kinds, strict=True))
                rate = chain_rate(stages, variant.max_batch_size)
                for level in LEVELS:
                    yield Pool(model, variant, sites, kinds, level, level * rate, price)


def _places(problem: Problem, kinds: Mapping[str, object]) -> list[tuple[int, str]]:
    return [(s, group.kind) for s, site in enumerate(problem.sites) for group in site.devices if group.kind in kinds]


def _resources(problem: Problem) -> Iterator[Resource]:
    for s, site in enumerate(problem.sites):
        for group in site.devices:
            yield Resource(s, group.kind, "slots", float(group.slots))
            if group.memory_bytes is not None:
                yield Resource(s, group.kind, "memory", group.memory_bytes)


def _states(problem: Problem, hours: Any) -> tuple[State, ...]:
    """Return every hour of every scenario, first without losses, then after each loss."""
    index = {site.name: s for s, site in enumerate(problem.sites)}
    losses = [(), *(tuple(sorted(index[name] for name in group)) for group in problem.failure_groups)]
    normal = [State(hour, scenario) for hour in hours for scenario in range(len(problem.scenarios))]
    return tuple(attrs.evolve(state, lost=group) for group in losses for state in normal)


def _rates(problem: Problem, state: State) -> Floats:
    factor = problem.scenarios[state.scenario].rate_factor
    return np.array([factor * c.rates[state.hour % len(c.rates)] for c in problem.clusters])


def _site_link(problem: Problem, start: int, end: int) -> Link | None:
    """Return the link between two sites, if any."""
    a, b = problem.sites[start].name, problem.sites[end].name
    return problem.site_links.get(a, {}).get(b) or problem.site_links.get(b, {}).get(a)


def _hops(problem: Problem, pool: Pool) -> Iterator[tuple[Link, float]]:
    """Yield the links between shards at different sites, each with the bytes of a request."""
    for shard, start, end in zip(pool.variant.shards, pool.sites, pool.sites[1:], strict=False):
        link = _site_link(problem, start, end)
        if link is not None and start != end:
            yield link, shard.transfer_bytes


def _path(
    problem: Problem, cluster: UserCluster, pool: Pool, scenario: int
) -> Iterator[tuple[AccessProfile | Link, float]]:
    """Yield all parts of the network between a cluster and a pool, each with the bytes of a request."""
    size = pool.model.request_bytes + pool.model.response_bytes
    yield problem.access_of(cluster, scenario), size
    yield problem.links[cluster.name][problem.sites[pool.sites[0]].name], size
    yield from _hops(problem, pool)


def _transfer_s(part: AccessProfile | Link, size: float) -> float:
    return 0.0 if part.bandwidth_bytes_s is None else size / part.bandwidth_bytes_s


def _times(parts: Sequence[AccessProfile | Link], size: float, step_s: float, bins: int = BINS) -> Floats:
    """Return the histograms of round-trip time and transfer of each part of the network."""
    return histograms([part.rtt for part in parts], [_transfer_s(part, size) for part in parts], step_s, bins)


def in_time(
    problem: Problem, promises: Sequence[tuple[UserCluster, ServiceClass]], pools: tuple[Pool, ...], scenario: int
) -> Bools:
    """Return whether the share of requests within the SLO is as promised to each cluster; false without a link.

    Args:
        problem: the problem.
        promises: clusters, each with its promise.
        pools: the pools.
        scenario: index of the scenario.

    Returns:
        Shape (promises, pools).
    """
    groups: dict[tuple[float, AccessProfile, str], list[int]] = {}
    for c, (cluster, promise) in enumerate(promises):
        key = promise.slo_s, problem.access_of(cluster, scenario), cluster.model
        groups.setdefault(key, []).append(c)
    found = np.zeros((len(promises), len(pools)), bool)
    for (slo_s, access, name), members in groups.items():
        model = next(it for it in problem.models if it.name == name)
        size, step_s = model.request_bytes + model.response_bytes, slo_s / BINS
        columns = [column for column, pool in enumerate(pools) if pool.model is model]
        remaining = _remaining_shares(
            problem, [pools[column] for column in columns], _times([access], size, step_s)[0], step_s
        )
        entries = np.array([pools[column].sites[0] for column in columns], int)
        for s in np.unique(entries):
            at_site = np.flatnonzero(entries == s)
            reached = {
                c: link
                for c in members
                if (link := problem.links.get(promises[c][0].name, {}).get(problem.sites[s].name))
            }
            if reached:
                backhaul = _times(list(reached.values()), size, step_s)
                shares = backhaul @ np.array([remaining[at] for at in at_site]).T
                promised = np.array([promises[c][1].share for c in reached])[:, None]
                found[np.ix_(np.array(list(reached)), np.array(columns)[at_site])] = shares >= promised - 1e-9
    return found


def _remaining_shares(problem: Problem, pools: list[Pool], access: Floats, step_s: float) -> list[Floats]:
    """Return, for each pool, the share in time by the time of the backhaul, given the histogram of the access."""
    cache: dict[Any, Floats] = {}
    entries = []
    for pool in pools:
        remote = pool.sites if len(set(pool.sites)) > 1 else ()
        key = pool.variant.name, pool.kinds, pool.level, remote
        if key not in cache:
            parts = [access, *(_times([link], size, step_s)[0] for link, size in _hops(problem, pool))]
            cache[key] = rest_within(parts, _delay_shares(pool, pool.level, step_s, BINS))
        entries.append(cache[key])
    return entries


def _delay_shares(pool: Pool, load: float, step_s: float, bins: int) -> Floats:
    stages = tuple(shard.service_time[kind] for shard, kind in zip(pool.variant.shards, pool.kinds, strict=True))
    delays_s = chain_delays(stages, pool.variant.max_batch_size, load)
    return share_within(delays_s, np.arange(bins + 1) * step_s)


def path_latency(
    problem: Problem, cluster: UserCluster, pool: Pool, scenario: int, load: float, step_s: float, bins: int
) -> Floats:
    """Return the share of a cluster's requests through a pool that take at most 0, 1, 2, … steps.

    Args:
        problem: the problem.
        cluster: the users.
        pool: the pool that serves them.
        scenario: index of the scenario.
        load: load of the replicas, as a share of their largest throughput.
        step_s: seconds of a step.
        bins: the last step.
    """
    parts = [_times([part], size, step_s, bins)[0] for part, size in _path(problem, cluster, pool, scenario)]
    below = max(1, int(load * _LOAD_STEPS + _LOAD_ROUNDING))  # whole steps, so that many clusters share cached delays
    above = load * _LOAD_STEPS - below
    delays = _delay_shares(pool, below / _LOAD_STEPS, step_s, bins)
    if above > _LOAD_ROUNDING:
        delays = (1 - above) * delays + above * _delay_shares(pool, (below + 1) / _LOAD_STEPS, step_s, bins)
    return rest_within(parts, delays)[::-1]


def sample_network(
    problem: Problem, cluster: UserCluster, pool: Pool, scenario: int, count: int, rng: np.random.Generator
) -> Floats:
    """Draw the time that requests of a cluster spend outside of replicas, in seconds."""
    total = np.zeros(count)
    for part, size in _path(problem, cluster, pool, scenario):
        total += part.rtt.sample(count, rng) + _transfer_s(part, size)
    return total
