"""`keda_scaled_object`: scales a Kubernetes deployment by queue delay, through KEDA and Prometheus."""

import math

from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
    is_name,
)
from streaminfer.telemetry.exporters.names import METRICS
from streaminfer.telemetry.exporters.rules.queries import duration, number, quoted, slug
from streaminfer.telemetry.exporters.rules.scaled_object import scaled_object
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml

__all__ = ["keda_scaled_object"]

_PARTS = next(metric.family for metric in METRICS["TelemetryStatistics"] if metric.name == "request.part.duration")


def keda_scaled_object(
    service: str,
    *,
    deployment: str,
    prometheus_url: str,
    queue_delay_s: float = 0.02,
    min_replicas: int = 1,
    max_replicas: int,
    window_s: float = 60.0,
    downscale_delay_s: float = 300.0,
) -> str:
    """Return a ``ScaledObject`` of KEDA that keeps the mean queue delay of a service at its target.

    For your own servers in Kubernetes; for Ray Serve, use `Autoscaling`. Kubernetes multiplies the number of replicas
    by the delay over the target. The error budget is not considered, because queue delay rises first.

    Args:
        service: name of the outermost `Telemetry` of the stack.
        deployment: name of the Kubernetes deployment.
        prometheus_url: address of Prometheus, as KEDA reaches it.
        queue_delay_s: target: mean seconds that requests are queued for their batch, over all replicas.
        min_replicas: at least 1, because nothing is measured without a replica.
        max_replicas: at least ``min_replicas``.
        window_s: seconds over which the mean is taken; should span several scrapes.
        downscale_delay_s: seconds that fewer replicas must be wanted before a replica is removed, at most 3600.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    for name, text in (("service", service), ("deployment", deployment), ("prometheus_url", prometheus_url)):
        check_instance(name, text, is_name, "a text that is not empty")
    if slug(deployment) != deployment:
        raise ValueError(expected("deployment", "a name of Kubernetes: lower case letters, digits, dashes", deployment))
    queue_delay_s = check_duration("queue_delay_s", queue_delay_s, positive=True)
    min_replicas = check_count("min_replicas", min_replicas)
    max_replicas = check_count("max_replicas", max_replicas, at_least=min_replicas)
    window_s = check_duration("window_s", window_s, positive=True)
    check_number("downscale_delay_s", downscale_delay_s, "seconds from 0 to 3600", lambda it: 0.0 <= it <= 3600.0)
    selector = f'{{service={quoted(service)}, part="queue"}}[{duration(window_s)}]'
    delay = f"sum(rate({_PARTS}_sum{selector})) / sum(rate({_PARTS}_count{selector}))"
    down = {"stabilizationWindowSeconds": math.ceil(downscale_delay_s)}
    return to_yaml(
        scaled_object(
            deployment,
            replicas=(min_replicas, max_replicas),
            prometheus_url=prometheus_url,
            # without requests the mean is NaN, and the queue is empty
            query=f"({delay} >= 0) or vector(0)",
            threshold=number(queue_delay_s),
            metric_type="Value",
            spec={
                "pollingInterval": 5,
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": down}}},
            },
        )
    )
