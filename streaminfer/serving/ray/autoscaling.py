"""Number of replicas for a deployment, from queue delay, burn rate and utilization, never from counts of requests.

*Design.* Ray's default compares requests in flight with a number per replica. That number has to be tuned for each
model and batch size, and Ray also counts requests of replicas that are gone (ray #61551). A service promises a time, so
the policy uses times. It adds replicas in proportion to the mean queue delay over its target, at most twofold per
decision, and at least half as many again while the error budget burns. It removes replicas only if the delay is below
half the target, the budget does not burn, and the remaining replicas would be at most 60 % busy. Ray applies
``upscale_delay_s``, ``downscale_delay_s`` and the bounds to the result of the policy.

*Invariants.* More delay never means fewer replicas; without a report the number does not change.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import attrs

from streaminfer._internal.validation import check_count, check_duration, check_number, expected, field_check

__all__ = ["Autoscaling", "QueueDelayPolicy", "ReplicaState", "wanted_replicas"]

_MAX_GROWTH = 2.0
_BURNING_GROWTH = 1.5
_LOW_PRESSURE = 0.5
_UTILIZATION_AFTER_REMOVAL = 0.6


class ReplicaState(NamedTuple):
    """Latest report of a replica; each field is a metric in Ray.

    Attributes:
        queue_delay_s: recent mean seconds that requests were queued for their batch.
        burn_rate: the highest burn rate of its objectives.
        utilization: recent share of the workers' time that batches took.
    """

    queue_delay_s: float
    burn_rate: float
    utilization: float


@attrs.frozen(kw_only=True)
class Autoscaling:
    """Settings for adding and removing replicas of a deployment.

    Attributes:
        min_replicas: at least 1.
        max_replicas: at least ``min_replicas``.
        queue_delay_s: target: mean seconds that requests are queued for their batch.
        burn_rate: burn rate of the error budget at which replicas are added, whatever the delay.
        upscale_delay_s: seconds that more replicas must be wanted before one is added.
        downscale_delay_s: seconds that fewer replicas must be wanted before one is removed.
    """

    min_replicas: int = attrs.field(default=1, validator=field_check(check_count))
    max_replicas: int = attrs.field(validator=field_check(check_count))
    queue_delay_s: float = attrs.field(default=0.02, validator=field_check(check_duration, positive=True))
    burn_rate: float = attrs.field(
        default=6.0, validator=field_check(check_number, "a number > 0", lambda number: number > 0)
    )
    upscale_delay_s: float = attrs.field(default=1.0, validator=field_check(check_duration))
    downscale_delay_s: float = attrs.field(default=60.0, validator=field_check(check_duration))

    def __attrs_post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                expected("min_replicas", f"from 1 to max_replicas={self.max_replicas!r}", self.min_replicas)
            )


def wanted_replicas(current: int, states: Iterable[ReplicaState], *, queue_delay_s: float, burn_limit: float) -> int:
    """Return how many replicas are wanted.

    Args:
        current: number of replicas that is wanted now.
        states: latest reports of the running replicas.
        queue_delay_s: the target.
        burn_limit: burn rate at which replicas are added.
    """
    reported = list(states)
    if not reported:
        return current
    pressure = sum(state.queue_delay_s for state in reported) / len(reported) / queue_delay_s
    burning = max(state.burn_rate for state in reported) >= burn_limit
    # starting replicas have not reported, and the delay of the running ones does not include them
    running = min(len(reported), current)
    growth = min(max(pressure, _BURNING_GROWTH if burning else 1.0), _MAX_GROWTH)
    if growth > 1.0:
        return max(math.ceil(running * growth), current)
    if pressure >= _LOW_PRESSURE:
        return current
    needed = math.ceil(sum(state.utilization for state in reported) / _UTILIZATION_AFTER_REMOVAL)
    return min(max(needed, 1), current)


class QueueDelayPolicy:
    """Autoscaling policy for Ray Serve: applies `wanted_replicas` to the metrics of the replicas.

    Args:
        queue_delay_s: the target.
        burn_limit: burn rate at which replicas are added.
    """

    def __init__(self, queue_delay_s: float, burn_limit: float) -> None:
        self._queue_delay_s = queue_delay_s
        self._burn_limit = burn_limit

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return how many replicas are wanted, and the state for the next call."""
        metrics = context.raw_metrics or {}
        newest = [_newest(metrics.get(name) or {}) for name in ReplicaState._fields]
        states = [
            ReplicaState(*(values[replica] for values in newest))
            for replica in context.running_replicas
            if all(replica in values for values in newest)
        ]
        replicas = wanted_replicas(
            context.target_num_replicas, states, queue_delay_s=self._queue_delay_s, burn_limit=self._burn_limit
        )
        return replicas, {}


def _newest(series: Mapping[Any, Any]) -> dict[Any, float]:
    """Return the newest value of each replica."""
    return {replica: points[-1].value for replica, points in series.items() if points}
