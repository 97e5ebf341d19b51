"""`replay`: compares the predictions of a plan with the batching simulator and sampled round-trip times.

All replicas of a group see the same kind of stream, so one replica per group is simulated, in the hour of the cluster's
prediction. Arrivals are Poisson at the replica's share of the demand, a batch takes all queued requests up to its
maximum size, and shards follow each other. The latency of a request is the delay of a random arrival at its group plus
samples of its round-trip times.
"""

from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_instance
from streaminfer.placement.plan_record import Plan
from streaminfer.placement.predictions import Prediction
from streaminfer.placement.solver.candidates import Pool, sample_network
from streaminfer.simulation.simulator import simulate

__all__ = ["ClusterCheck", "PlanCheck", "replay"]

_NO_DEADLINE_S = 1e6
_TOLERANCE = 0.1
_ARRIVALS_PER_REQUEST = 5
"""Arrivals at a group per request: successive delays are correlated, so p99 of a queue needs more of them."""
_LONGEST_RUN_S = 5e8
"""Longest simulated time; the clock ends at twice that. Longer gaps are shortened, because no queue outlasts them."""

Floats = NDArray[np.float64]


@attrs.frozen(kw_only=True)
class ClusterCheck:
    """A prediction beside the simulation.

    Attributes:
        prediction: prediction of the plan.
        simulated_s: latency that the promised share of the simulated requests did not exceed.
        on_time: share of the simulated requests within the SLO.
    """

    prediction: Prediction
    simulated_s: float
    on_time: float

    @property
    def ratio(self) -> float:
        """Predicted over simulated latency; above 1 the plan is cautious."""
        return self.prediction.latency_s / self.simulated_s

    @property
    def is_kept(self) -> bool:
        """Whether the promised share of the requests was on time."""
        return self.on_time >= self.prediction.share


@attrs.frozen(kw_only=True, repr=False)
class PlanCheck:
    """Result of the simulation of a plan; a notebook shows it as a table.

    Attributes:
        clusters: checks by name of the cluster.
        requests: simulated requests per cluster.
        unserved: clusters for which the plan lacks capacity, so that their promise is not kept.
    """

    clusters: Mapping[str, ClusterCheck]
    requests: int
    unserved: tuple[str, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the clusters whose promise was kept."""
        count = len({*self.clusters, *self.unserved})
        names = [name for name, it in self.clusters.items() if it.is_kept and name not in self.unserved]
        return len(names) / count if count else 1.0

    @property
    def within(self) -> float:
        """Share of the clusters whose latency was predicted within 10 %."""
        is_close = [abs(it.ratio - 1) <= _TOLERANCE for it in self.clusters.values()]
        return float(np.mean(is_close)) if is_close else 1.0

    @property
    def weak_spots(self) -> tuple[ClusterCheck, ...]:
        """Clusters with a broken promise, or with a latency that was predicted over 10 % too low; the worst first."""
        weak = [it for it in self.clusters.values() if not it.is_kept or it.ratio < 1 - _TOLERANCE]
        return tuple(sorted(weak, key=lambda it: it.on_time - it.prediction.share))

    def _title(self) -> str:
        return (
            f"{len({*self.clusters, *self.unserved})} clusters, {self.requests} requests each: "
            f"{self.kept:.1%} kept their promise, {self.within:.1%} predicted within 10 %"
            + (f", {len(self.unserved)} unserved" if self.unserved else "")
        )

    def __repr__(self) -> str:
        weak = [f"  weak: {it.prediction.cluster}, {it.on_time:.2%} on time" for it in self.weak_spots[:10]]
        return "\n".join([f"<PlanCheck: {self._title()}>", *weak])

    def _repr_html_(self) -> str:
        rows = [
            (
                it.prediction.cluster,
                format_duration(it.prediction.latency_s),
                format_duration(it.simulated_s),
                format_duration(it.prediction.slo_s),
                f"{it.on_time:.2%}",
            )
            for it in sorted(self.clusters.values(), key=lambda it: it.on_time - it.prediction.share)[:50]
        ]
        return html_table(rows, head=["cluster", "predicted", "simulated", "SLO", "on time"], caption=self._title())


def replay(plan: Plan, *, requests: int = 20_000, seed: int = 0) -> PlanCheck:
    """Simulate a plan.

    Args:
        plan: plan to check.
        requests: simulated requests per cluster; five times as many arrive at each group of replicas.
        seed: seed of arrivals and round-trip times.

    Returns:
        Predicted and simulated latencies.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """
    check_instance("plan", plan, Plan, "a Plan")
    requests = check_count("requests", requests, at_least=100)
    rng = np.random.default_rng(check_count("seed", seed, at_least=0))
    problem = plan.problem
    scenarios = {it.name: at for at, it in enumerate(problem.scenarios)}
    pools = [pool for pool, count in zip(plan.instance.pools, plan.counts, strict=True) if count > 0]
    delays: dict[tuple[int, int, str], Floats] = {}
    checks = {}
    for cluster in problem.clusters:
        if (prediction := plan.predictions.get(cluster.name)) is None:
            continue
        hour, scenario = prediction.hour, prediction.scenario
        shares = plan.assignments[hour, scenario][cluster.name]
        groups = rng.choice(list(shares), size=requests, p=np.array(list(shares.values())) / sum(shares.values()))
        latencies_s = np.empty(requests)
        for group in shares:
            is_member = groups == group
            if (group, hour, scenario) not in delays:
                rate = plan.group_rates(hour, scenario)[group] / plan.replicas[group].replicas
                count = _ARRIVALS_PER_REQUEST * requests
                delays[group, hour, scenario] = _delays(pools[group], rate, count, rng)
            network_s = sample_network(problem, cluster, pools[group], scenarios[scenario], int(is_member.sum()), rng)
            latencies_s[is_member] = network_s + rng.choice(delays[group, hour, scenario], size=int(is_member.sum()))
        checks[cluster.name] = ClusterCheck(
            prediction=prediction,
            simulated_s=float(np.quantile(latencies_s, prediction.share, method="inverted_cdf")),
            on_time=float(np.mean(latencies_s <= prediction.slo_s)),
        )
    return PlanCheck(clusters=checks, requests=requests, unserved=tuple(plan.unserved))


def _delays(pool: Pool, rate: float, count: int, rng: np.random.Generator) -> Floats:
    """Return the delays at one replica, through all shards."""
    gaps_s = np.minimum(rng.exponential(1.0 / rate, count), _LONGEST_RUN_S / count)
    started_s: Floats = np.cumsum(gaps_s)
    ended_s = started_s
    for shard, kind in zip(pool.variant.shards, pool.kinds, strict=True):
        result = simulate(
            ended_s,
            slo_s=_NO_DEADLINE_S,
            service_time=shard.service_time[kind],
            max_batch_size=pool.variant.max_batch_size,
            policy="greedy",
        )
        ended_s = np.maximum.accumulate(ended_s + result.latencies_s)
    return ended_s - started_s
