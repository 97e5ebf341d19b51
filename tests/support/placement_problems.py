"""Small placement problems of every kind of constraint, and brute force over their replicas."""

import itertools

import numpy as np

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement import (
    AccessProfile,
    DeviceGroup,
    Distribution,
    Link,
    Model,
    Problem,
    Scenario,
    ServiceClass,
    Shard,
    Site,
    UserCluster,
    Variant,
)

__all__ = ["KINDS", "BruteForce", "satisfiable", "small_problem"]

KINDS = (
    "plain",
    "memory",
    "residency",
    "quality",
    "hours",
    "scenarios",
    "failures",
    "shards",
    "site_prices",
    "classes",
)


def small_problem(seed: int, kind: str) -> Problem:
    """Return a problem with few pools; about one in four has no plan."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    clusters, sites = int(rng.integers(2, 5)), 3 if kind == "failures" else int(rng.integers(2, 4))
    hours = 3 if kind == "hours" else 1
    variants = 2 if kind in {"quality", "memory"} else 1
    whole = [
        Shard(
            service_time={"cpu": ServiceTime.affine(0.004 * (size + 1), 0.002 * (size + 1))},
            memory_bytes=float(size + 1),
        )
        for size in range(variants)
    ]
    choices = [
        Variant(name=f"v{size}", quality=1.0 + size, shards=[shard], max_batch_size=4)
        for size, shard in enumerate(whole)
    ]
    if kind == "shards":
        choices.append(Variant(name="split", quality=2.0, shards=whole * 2, max_batch_size=4))
        choices = choices[-1:]
    regions = [("eu",) if rng.random() < 0.6 else ("us",) for _ in range(sites)]
    named = {region for one in regions for region in one}
    return Problem(
        clusters=[
            UserCluster(
                name=f"c{c}",
                rates=tuple(float(rate) for rate in rng.uniform(60, 420, hours)),
                access=("near", "far")[int(rng.integers(2))] if kind != "scenarios" else "near",
                service_class=("fast", "slow")[int(rng.integers(2))] if kind == "classes" else "slow",
                model="m",
                residency="eu" if kind == "residency" and "eu" in named and rng.random() < 0.5 else None,
            )
            for c in range(clusters)
        ],
        sites=[
            Site(
                name=f"s{s}",
                regions=regions[s],
                price=float(rng.uniform(1, 4)) if kind == "site_prices" else 0.0,
                devices=[
                    DeviceGroup(
                        kind="cpu",
                        slots=int(rng.integers(2, 4 if variants > 1 else 5)),
                        price=float(rng.uniform(1, 2)),
                        memory_bytes=float(rng.integers(2, 5)) if kind == "memory" else None,
                    )
                ],
            )
            for s in range(sites)
        ],
        models=[Model(name="m", variants=choices)],
        access=[
            AccessProfile(name="near", rtt=Distribution.of([0.001, 0.002])),
            AccessProfile(name="far", rtt=Distribution.of([0.005, 0.012, 0.02])),
        ],
        service_classes=[
            ServiceClass(name="fast", slo_s=0.06),
            ServiceClass(
                name="slow",
                slo_s=0.12,
                share=0.95,
                min_quality=2.0 if kind == "quality" and rng.random() < 0.4 else 0.0,
            ),
        ],
        links={
            f"c{c}": {
                f"s{s}": Link(
                    rtt=Distribution.of(np.sort(rng.uniform(0.002, 0.09) * rng.uniform(0.8, 1.2, 9)).tolist())
                )
                for s in range(sites)
                if rng.random() < 0.9
            }
            for c in range(clusters)
        },
        site_links={
            f"s{a}": {f"s{b}": Link(rtt=Distribution.of(0.004)) for b in range(a + 1, sites)} for a in range(sites - 1)
        },
        scenarios=[Scenario(name="normal"), Scenario(name="5g out", access={"c0": "far"}, rate_factor=1.1)]
        if kind == "scenarios"
        else [Scenario(name="normal")],
        failures="any site" if kind == "failures" else (),
    )


PLENTY = 1e6


def satisfiable(candidates, kept, settings=None):
    """Return whether any counts satisfy the kept constraints, by brute force."""
    asked = {(it.kind, it.subject) for it in kept}
    problem = candidates.problem
    allowed = np.zeros(candidates.in_time.shape, bool)
    rates = candidates.rates.copy()
    for c, cluster in enumerate(problem.clusters):
        subject = (cluster.name,)
        mask = candidates.serves[c] & np.ones_like(candidates.in_time[:, c])
        if ("slo", subject) in asked:
            mask &= candidates.in_time[:, c]
        if ("residency", subject) in asked:
            mask &= candidates.meets_residency[c]
        if ("quality", subject) in asked:
            mask &= candidates.meets_quality[c]
        if ("demand", subject) not in asked:
            rates[:, c] = 0.0
        allowed[:, c] = mask
    limits = np.array(
        [
            it.limit if (it.what, (problem.sites[it.site].name, it.kind)) in asked else np.inf
            for it in candidates.resources
        ]
    )
    names = [site.name for site in problem.sites]
    survived = [
        at
        for at, it in enumerate(candidates.states)
        if not it.lost or ("failure", tuple(names[s] for s in it.lost)) in asked
    ]
    brute = BruteForce(candidates, allowed, limits)
    if settings is not None:
        brute.budget = settings.budget if ("budget", ()) in asked else None
        brute.migrations = settings.migrations if ("migrations", ()) in asked else None
        brute.running = settings.running
    return bool(brute.feasible(brute.counts(), [candidates.states[at] for at in survived], rates[survived]).any())


class BruteForce:
    """Brute force over all counts of replicas, judged by Hall's condition over all subsets of clusters.

    Args:
        allowed: shape (scenarios, c, p).
        candidates: the pools; those that serve no cluster are left out.
        limits: of the resources.
    """

    budget = migrations = None
    running = {}  # noqa: RUF012 - nothing changes it

    def __init__(self, candidates, allowed=None, limits=None):
        self.allowed = candidates.allowed if allowed is None else allowed
        self.candidates = candidates
        self.limits = np.array([it.limit for it in candidates.resources]) if limits is None else limits
        # of pools that serve the same clusters from the same home, only the one with the largest rate matters
        best = {}
        for p, pool in enumerate(candidates.pools):
            key = (pool.home, self.allowed[:, :, p].tobytes())
            if self.allowed[:, :, p].any() and (key not in best or candidates.pools[best[key]].rate < pool.rate):
                best[key] = p
        self.columns = sorted(best.values())
        self.rates = np.array([candidates.pools[p].rate for p in self.columns])
        self.prices = np.array([candidates.pools[p].price for p in self.columns])
        self.qualities = np.array([candidates.pools[p].variant.quality for p in self.columns])
        self.needs = candidates.needs[:, self.columns]
        self.uses = candidates.uses[:, self.columns]
        self.site_prices = np.array([site.price for site in candidates.problem.sites])
        self.subsets = [
            np.array(bits, bool)
            for bits in itertools.product([False, True], repeat=len(candidates.problem.clusters))
            if any(bits)
        ]

    def counts(self):
        """Return all counts within the limits, the budget and the migrations."""
        is_free = self.budget is None and self.migrations is None
        found = np.zeros((1, len(self.columns)))
        for column in range(len(self.columns)):
            if is_free and np.isinf(self.limits[self.needs[:, column] > 0]).all():
                found[:, column] = PLENTY  # more never hurts, and nothing limits it
                continue
            steps = []
            for more in itertools.count():
                tried = found.copy()
                tried[:, column] = more
                fits = (np.minimum(tried, 9) @ self.needs.T <= self.limits + 1e-9).all(axis=1)
                if self.budget is not None:
                    fits &= self.costs(tried) <= self.budget + 1e-9
                if self.migrations is not None:
                    fits &= self.started(tried) <= self.migrations
                if not fits.any():
                    break
                steps.append(tried[fits])
            found = np.concatenate(steps)
        return found

    def feasible(self, counts, states=None, rates=None):
        """Return, for each row of counts, whether it serves all clusters in every state."""
        good = np.ones(len(counts), bool)
        for at, state in enumerate(self.candidates.states if states is None else states):
            demand = (self.candidates.rates if rates is None else rates)[at]
            alive = ~self.uses[list(state.lost)].any(axis=0)
            mask = self.allowed[state.scenario][:, self.columns] & alive
            for subset in self.subsets:
                pools = mask[subset & (demand > 0)].any(axis=0)
                good &= counts[:, pools] @ self.rates[pools] >= demand[subset].sum() * (1 - 1e-7)
        return good

    def costs(self, counts):
        used = np.array([((counts > 0) & row).any(axis=1) for row in self.uses])
        return counts @ self.prices + self.site_prices @ used

    def started(self, counts):
        homes = [self.candidates.pools[p].home for p in self.columns]
        total = np.zeros(len(counts))
        for home in set(homes):
            here = counts[:, [it == home for it in homes]].sum(axis=1)
            total += np.maximum(here - self.running.get(home, 0), 0.0)
        return total

    def least_cost(self):
        """Return the least cost; infinite if there is no plan."""
        counts = self.counts()
        counts = counts[self.feasible(counts)]
        return float(self.costs(counts).min(initial=np.inf))

    def most_quality(self, budget):
        """Return the highest mean quality within a budget."""
        counts = self.counts()
        counts = counts[self.feasible(counts) & (self.costs(counts) <= budget + 1e-9)]
        return float(self.mean_qualities(counts).max(initial=-np.inf))

    def mean_qualities(self, counts):
        """Return the best mean quality of each row of counts."""
        normal = [at for at, state in enumerate(self.candidates.states) if not state.lost]
        total = np.zeros(len(counts))
        for at in normal:
            mask = self.allowed[self.candidates.states[at].scenario][:, self.columns]
            steps = sorted(set(self.qualities.tolist()), reverse=True)
            for quality, following in zip(steps, [*steps[1:], 0.0], strict=True):
                total += (quality - following) * self._largest_flow(
                    counts, mask & (self.qualities >= quality), self.candidates.rates[at]
                )
        return total / self.candidates.rates[normal].sum()

    def _largest_flow(self, counts, mask, demand):
        """Return the largest flow: by duality, the least sum of a subset's pool capacity and the demand outside it."""
        flow = np.full(len(counts), demand.sum())
        for subset in self.subsets:
            pools = mask[subset].any(axis=0)
            flow = np.minimum(flow, demand[~subset].sum() + counts[:, pools] @ self.rates[pools])
        return flow
