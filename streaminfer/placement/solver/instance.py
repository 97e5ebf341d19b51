"""`Instance`: the relevant pools of a problem, as arrays, with the caller's settings."""

import copy
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.solver.candidates import Candidates
from streaminfer.placement.solver.flows import Flows

__all__ = ["Instance", "Settings"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of the caller of `plan`.

    Attributes:
        budget: maximum cost of the plan, which then maximizes the quality; ``None``: lowest cost.
        running: replicas that run already, by `Pool.home`.
        migrations: maximum number of replicas to start; ``None``: any number.
        extra: slots or memory to add to the limits, by the row of the resource.
        is_partial: serve as many requests as possible, at any cost, instead of all of them.
    """

    budget: float | None = None
    running: Mapping[tuple[Any, ...], int] = attrs.field(factory=dict)
    migrations: int | None = None
    extra: Mapping[int, float] = attrs.field(factory=dict)
    is_partial: bool = False


class Instance:
    """Input of the solver: the pools that no other pool dominates, with their prices, needs and flows.

    Args:
        candidates: the pools.
        allowed: shape (scenarios, c, p), whether a pool may serve a cluster; ``None``: as promised.
        settings: settings of the caller of `plan`.
    """

    def __init__(self, candidates: Candidates, allowed: Bools | None = None, settings: Settings | None = None) -> None:
        self.candidates = candidates
        self.lost: frozenset[int] = frozenset()  # sites, of a repair
        self.settings = settings = Settings() if settings is None else settings
        allowed_pools = candidates.allowed if allowed is None else allowed
        self.pool_indexes = _undominated(candidates, allowed_pools, settings)
        pools = [candidates.pools[p] for p in self.pool_indexes]
        self.pools = pools
        self.prices = np.array([pool.price for pool in pools])
        self.pool_rates = np.array([pool.rate for pool in pools])
        self.qualities = np.array([pool.variant.quality for pool in pools])
        self.needs = candidates.needs[:, self.pool_indexes]
        self.limits = np.array([it.limit for it in candidates.resources])
        for row, added in settings.extra.items():
            self.limits[row] += added
        self.uses = candidates.uses[:, self.pool_indexes]
        self.site_prices = np.array([site.price for site in candidates.problem.sites])
        masks = [
            np.ascontiguousarray(
                allowed_pools[it.scenario][:, self.pool_indexes] & ~self.uses[list(it.lost)].any(axis=0)
            )
            for it in candidates.states
        ]
        self.flows = Flows(candidates.rates, masks, self.pool_rates)
        self.max_counts = self._max_counts()

    def _max_counts(self) -> Floats:
        """Return upper bounds on the replicas of each pool."""
        with np.errstate(divide="ignore", invalid="ignore"):
            by_resource: Floats = np.where(
                self.needs > 0, np.floor(self.limits[:, None] / self.needs + 1e-9), np.inf
            ).min(axis=0)
        demand: Floats = np.max([self.flows.rates[s] @ mask for s, mask in enumerate(self.flows.allowed)], axis=0)
        bounds: Floats = np.minimum(by_resource, np.maximum(np.ceil(demand / self.pool_rates - 1e-9), demand > 0))
        return bounds

    @cached_property
    def distances(self) -> Floats:
        """Mean round-trip time from each cluster to the first site of each pool, shape (c, p)."""
        problem = self.candidates.problem
        means = np.full((len(problem.clusters), len(problem.sites)), np.inf)
        index = {site.name: at for at, site in enumerate(problem.sites)}
        for c, cluster in enumerate(problem.clusters):
            for name, link in problem.links.get(cluster.name, {}).items():
                means[c, index[name]] = link.rtt.values_s @ link.rtt.shares
        return means[:, [pool.sites[0] for pool in self.pools]]

    def cost(self, counts: Floats) -> float:
        """Return the price of replicas and of the sites that they use."""
        used = (self.uses & (counts > 0)).any(axis=1)
        return float(self.prices @ counts + self.site_prices @ used)

    def quality(self, counts: Floats) -> float:
        """Return the best mean quality over the requests of all hours and scenarios."""
        total, demand = 0.0, 0.0
        for state in self.normal():
            flow = self.flows.empty()
            for quality in self.steps():
                self.flows.extend(state, counts, flow, pools=self.qualities >= quality)
            total += float(flow.sum(axis=0) @ self.qualities) / self.flows.unit
            demand += float(self.flows.rates[state].sum())
        return total / max(demand, 1e-12)

    def normal(self) -> list[int]:
        """Return the states without losses."""
        return [at for at, state in enumerate(self.candidates.states) if not state.lost]

    def steps(self) -> Floats:
        """Return the distinct qualities, best first."""
        return np.unique(self.qualities)[::-1]

    def started(self, counts: Floats) -> int:
        """Return how many replicas do not run already."""
        counts_by_home: dict[tuple[Any, ...], float] = {}
        for pool, count in zip(self.pools, counts, strict=True):
            counts_by_home[pool.home] = counts_by_home.get(pool.home, 0.0) + count
        return int(sum(max(0.0, count - self.settings.running.get(home, 0)) for home, count in counts_by_home.items()))

    def without(self, lost: Collection[int]) -> Self:
        """Return the instance without the lost sites; it need not survive a further loss."""
        normal = self.normal()
        is_lost = np.array([resource.site in lost for resource in self.candidates.resources])
        available = ~self.uses[list(lost)].any(axis=0)
        reduced = copy.copy(self)
        reduced.lost = self.lost.union(lost)
        reduced.limits = np.where(is_lost, 0.0, self.limits)
        reduced.candidates = attrs.evolve(
            self.candidates, states=tuple(self.candidates.states[state] for state in normal)
        )
        reduced.flows = Flows(
            self.candidates.rates[normal], [self.flows.allowed[state] & available for state in normal], self.pool_rates
        )
        return reduced.serving(reduced.flows.rates, Settings())

    def serving(self, rates: Floats, settings: Settings) -> Self:
        """Return the instance with other requests per second, shape (states, c), and settings."""
        changed = copy.copy(self)
        changed.settings = settings
        changed.candidates = attrs.evolve(self.candidates, rates=rates)
        changed.flows = Flows(rates, self.flows.allowed, self.pool_rates)
        if settings.is_partial:
            changed.qualities = np.ones(len(self.pools))  # then the quality is the served share
        changed.max_counts = changed._max_counts()
        return changed


def _undominated(candidates: Candidates, allowed: Bools, settings: Settings) -> NDArray[np.int64]:
    """Return the pools that serve a cluster and that no pool at the same place dominates; of equal ones the best."""
    pools = candidates.pools
    by_location: dict[tuple[Any, ...], list[int]] = {}
    for p in sorted(np.flatnonzero(allowed.any(axis=(0, 1))).tolist(), key=lambda p: -pools[p].variant.quality):
        by_location.setdefault((pools[p].sites, pools[p].kinds), []).append(p)

    as_good = partial(_is_as_good, candidates, allowed, settings)
    undominated = [
        p
        for members in by_location.values()
        for at, p in enumerate(members)
        if not any(as_good(q, p) for q in members[:at])
        and not any(as_good(q, p) and not as_good(p, q) for q in members[at + 1 :])
    ]
    return np.array(sorted(undominated), int)


def _is_as_good(candidates: Candidates, allowed: Bools, settings: Settings, first: int, second: int) -> bool:
    a, b = candidates.pools[first], candidates.pools[second]
    if a.rate < b.rate or a.price > b.price or (candidates.needs[:, first] > candidates.needs[:, second]).any():
        return False
    if settings.budget is not None and a.variant.quality < b.variant.quality:
        return False
    if settings.migrations is not None and a.home != b.home:
        return False
    return not (allowed[:, :, second] & ~allowed[:, :, first]).any()
