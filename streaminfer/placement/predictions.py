"""`predict`: the latency of each cluster in the hour in which its replicas are busiest.

The bins of the first pass are parts of the SLO. The bins of the second pass are parts of the latency that the first one
found, so rounding up adds little to a latency far below the SLO. Delays are interpolated between loads that are whole
hundredths.
"""

from collections.abc import Iterator, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.problem import ServiceClass
from streaminfer.placement.solver.candidates import path_latency
from streaminfer.placement.solver.delays import LEVELS
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.latency import BINS, sum_quantile

__all__ = ["Prediction", "predict"]

_BINS = BINS + 20
"""Bins of a latency: those up to the expected one, and some beyond, for sums of values that are rounded up."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, str]
"""An hour, and the name of a scenario."""


@attrs.frozen(kw_only=True)
class Prediction:
    """The latency of a cluster in the hour in which its replicas are busiest.

    Attributes:
        cluster: name of the cluster.
        hour: index of the hour.
        scenario: name of the scenario.
        latency_s: latency that the promised share of the requests does not exceed.
        slo_s: promised latency.
        share: promised share of the requests.
    """

    cluster: str
    hour: int
    scenario: str
    latency_s: float
    slo_s: float
    share: float


def predict(instance: Instance, counts: Floats, flows: Mapping[Key, Ints]) -> dict[str, Prediction]:
    """Predict the latency of every cluster that is served.

    Args:
        instance: pools that the replicas were chosen from.
        counts: replicas of each pool.
        flows: flows of demand to pools, by hour and name of the scenario.
    """
    problem = instance.candidates.problem
    largest = counts * instance.pool_rates / [pool.level for pool in instance.pools] * instance.flows.unit
    with np.errstate(divide="ignore", invalid="ignore"):
        loads = {key: np.nan_to_num(flow.sum(axis=0) / largest) for key, flow in flows.items()}
    predictions = {}
    for c, cluster in enumerate(problem.clusters):
        promise = problem.promise_of(cluster)
        serving = {key: float(loads[key][flow[c] > 0].max()) for key, flow in flows.items() if flow[c].any()}
        latencies_s = {
            key: _latency_s(instance, c, key[1], flows[key][c], loads[key], promise) for key in _busiest(serving)
        }
        if latencies_s:
            hour, scenario = slowest = max(latencies_s, key=latencies_s.__getitem__)
            predictions[cluster.name] = Prediction(
                cluster=cluster.name,
                hour=hour,
                scenario=scenario,
                latency_s=latencies_s[slowest],
                slo_s=promise.slo_s,
                share=promise.share,
            )
    return predictions


def _latency_s(instance: Instance, c: int, name: str, flow: Ints, loads: Floats, promise: ServiceClass) -> float:
    """Return the latency of the promised share of a cluster's requests, in two passes."""
    problem = instance.candidates.problem
    scenario = [it.name for it in problem.scenarios].index(name)
    latency_s = promise.slo_s
    for _ in range(2):
        step_s = latency_s / BINS
        parts = []
        for p in np.flatnonzero(flow):
            load = min(loads[p], max(LEVELS))
            shares = path_latency(problem, problem.clusters[c], instance.pools[p], scenario, load, step_s, _BINS)
            parts.append((float(flow[p]), shares))
        quantile_s = sum_quantile(parts, promise.share, step_s)
        if not 0 < quantile_s < latency_s:
            return quantile_s
        latency_s = quantile_s
    return latency_s


def _busiest(loads: Mapping[Key, float]) -> Iterator[Key]:
    """Yield the hour with the largest load in each scenario."""
    for scenario in dict.fromkeys(name for _, name in loads):  # a set has another order in each process
        yield max((key for key in loads if key[1] == scenario), key=loads.__getitem__)
