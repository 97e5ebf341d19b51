"""`Candidates`: every way to run a variant, with the clusters that it can serve in time and its needs.

*Idea.* A *pool* is a variant at a site (a path of sites for shards), on a kind of device, and with one of a few levels
as the maximum load of its replicas. The level fixes the distribution of the delay at a replica. So a table of booleans
tells before the optimization whether a pool keeps the promise of a cluster. The solver only chooses the number of
replicas of each pool.

*Complexity.* The table costs one product of matrices for each group of clusters with the same SLO, access profile and
model: 500 clusters × 60 sites × 15 pools × 500 bins take half a second.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.distribution import Distribution
from streaminfer.placement.problem import AccessProfile, Link, Model, Problem, Site, UserCluster, Variant
from streaminfer.placement.solver.delays import LEVELS, chain_delays, chain_rate, share_within
from streaminfer.placement.solver.latency import BINS, histograms, rest_within

__all__ = ["Candidates", "Pool", "Resource", "State", "find_candidates", "path_latency"]

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
    regions = np.array(
        [
            [all(c.residency in (None, *problem.sites[s].regions) for s in pool.sites) for pool in pools]
            for c in problem.clusters
        ],
        bool,
    )
    reachable = np.array(
        [[site.name in problem.links.get(c.name, ()) for site in problem.sites] for c in problem.clusters]
    )
    entries = np.array([pool.sites[0] for pool in pools], int)
    same_model = np.array([[c.model == pool.model.name for pool in pools] for c in problem.clusters], bool)
    quality = np.array([pool.variant.quality for pool in pools])
    min_quality = np.array([problem.promise_of(c).min_quality for c in problem.clusters])
    shape = len(problem.clusters), len(pools)
    return Candidates(
        problem=problem,
        pools=pools,
        resources=resources,
        needs=needs,
        uses=uses,
        serves=(same_model & reachable[:, entries]).reshape(shape),
        meets_residency=regions.reshape(shape),
        meets_quality=quality[None, :] >= min_quality[:, None],
        in_time=np.array([_in_time(problem, pools, scenario) for scenario in range(len(problem.scenarios))]),
        states=states,
        rates=np.array([_rates(problem, state) for state in states]),
    )


def _pools(problem: Problem) -> Iterator[Pool]:
    for model in problem.models:
        for variant in model.variants:
            for path in itertools.product(*(_places(problem, shard.service_time) for shard in variant.shards)):
                sites, kinds = tuple(site for site, _ in path), tuple(kind for _, kind in path)
                if not all(_site_link(problem, *pair) for pair in itertools.pairwise(sites)):
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
    """Return the link between two sites; within a site, it takes no time. ``None``: there is no link."""
    if start == end:
        return _LOCAL
    a, b = problem.sites[start].name, problem.sites[end].name
    return problem.site_links.get(a, {}).get(b) or problem.site_links.get(b, {}).get(a)


_LOCAL = Link(rtt=Distribution.of(0.0))


def _transfer_s(size: float, bandwidth: float | None) -> float:
    return 0.0 if bandwidth is None else size / bandwidth


def _payload(model: Model) -> float:
    return model.request_bytes + model.response_bytes


def _transfers(problem: Problem, pool: Pool, step_s: float, bins: int) -> list[Floats]:
    """Return the histograms of the transfers between shards."""
    return [histograms([rtt], [transfer_s], step_s, bins)[0] for rtt, transfer_s in _site_transfers(problem, pool)]


def _site_transfers(problem: Problem, pool: Pool) -> Iterator[tuple[Distribution, float]]:
    """Round-trip time and seconds of transfer between shards at different sites."""
    for shard, start, end in zip(pool.variant.shards, pool.sites, pool.sites[1:], strict=False):
        link = _site_link(problem, start, end)
        if link is not None and link is not _LOCAL:
            yield link.rtt, _transfer_s(shard.transfer_bytes, link.bandwidth_bytes_s)


def _in_time(problem: Problem, pools: tuple[Pool, ...], scenario: int) -> Bools:
    """Return whether the share of requests within the SLO is as promised, shape (c, p)."""
    promises = [problem.promise_of(cluster) for cluster in problem.clusters]
    groups: dict[tuple[float, AccessProfile, str], list[int]] = {}
    for c, cluster in enumerate(problem.clusters):
        key = promises[c].slo_s, problem.access_of(cluster, scenario), cluster.model
        groups.setdefault(key, []).append(c)
    in_time = np.zeros((len(problem.clusters), len(pools)), bool)
    for (slo_s, access, model), members in groups.items():
        columns = [column for column, pool in enumerate(pools) if pool.model.name == model]
        remaining = _remaining_shares(problem, [pools[column] for column in columns], access, slo_s)
        promised = np.array([promises[c].share for c in members])[:, None]
        entries = np.array([pools[column].sites[0] for column in columns], int)
        for s in np.unique(entries):
            at_site = np.flatnonzero(entries == s)
            backhaul = _backhaul(problem, [problem.clusters[c] for c in members], problem.sites[s], slo_s / BINS, BINS)
            keys, inverse = np.unique([remaining[at][0] for at in at_site], return_inverse=True)
            first = [next(at for at in at_site if remaining[at][0] == number) for number in keys]
            shares = backhaul @ np.array([remaining[at][1] for at in first]).T
            in_time[np.ix_(np.array(members), np.array(columns)[at_site])] = shares[:, inverse] >= promised - 1e-9
    return in_time


def _remaining_shares(
    problem: Problem, pools: list[Pool], profile: AccessProfile, slo_s: float
) -> list[tuple[int, Floats]]:
    """Return, for each pool, a number that equal pools share, and the share in time by the time of the backhaul."""
    step_s = slo_s / BINS
    cache: dict[Any, tuple[int, Floats]] = {}
    entries = []
    for pool in pools:
        remote = pool.sites if len(set(pool.sites)) > 1 else ()
        key = pool.variant.name, pool.kinds, pool.level, remote
        if key not in cache:
            offset_s = _transfer_s(_payload(pool.model), profile.bandwidth_bytes_s)
            first = histograms([profile.rtt], [offset_s], step_s)[0]
            parts = [first, *_transfers(problem, pool, step_s, BINS)]
            cache[key] = len(cache), rest_within(parts, _delay_shares(pool, pool.level, step_s, BINS))
        entries.append(cache[key])
    return entries


def _delay_shares(pool: Pool, load: float, step_s: float, bins: int) -> Floats:
    stages = tuple(shard.service_time[kind] for shard, kind in zip(pool.variant.shards, pool.kinds, strict=True))
    delays_s = chain_delays(stages, pool.variant.max_batch_size, load)
    return share_within(delays_s, np.arange(bins + 1) * step_s)


def _backhaul(problem: Problem, clusters: list[UserCluster], site: Site, step_s: float, bins: int) -> Floats:
    links = [problem.links.get(c.name, {}).get(site.name) for c in clusters]
    models = {it.name: it for it in problem.models}
    offsets_s = [
        0.0 if link is None else _transfer_s(_payload(models[c.model]), link.bandwidth_bytes_s)
        for c, link in zip(clusters, links, strict=True)
    ]
    return histograms([None if link is None else link.rtt for link in links], offsets_s, step_s, bins)


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
    profile = problem.access_of(cluster, scenario)
    offset_s = _transfer_s(_payload(pool.model), profile.bandwidth_bytes_s)
    access = histograms([profile.rtt], [offset_s], step_s, bins)[0]
    backhaul = _backhaul(problem, [cluster], problem.sites[pool.sites[0]], step_s, bins)[0]
    parts = [access, backhaul, *_transfers(problem, pool, step_s, bins)]
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
    profile = problem.access_of(cluster, scenario)
    link = problem.links[cluster.name][problem.sites[pool.sites[0]].name]
    payload = _payload(pool.model)
    total = profile.rtt.sample(count, rng) + _transfer_s(payload, profile.bandwidth_bytes_s)
    total += link.rtt.sample(count, rng) + _transfer_s(payload, link.bandwidth_bytes_s)
    for rtt, transfer_s in _site_transfers(problem, pool):
        total += rtt.sample(count, rng) + transfer_s
    return total
