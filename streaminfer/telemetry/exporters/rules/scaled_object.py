"""A ``ScaledObject`` of KEDA: replicas of a deployment by a query of Prometheus."""

from collections.abc import Mapping
from typing import Any

__all__ = ["scaled_object"]


def scaled_object(
    deployment: str,
    *,
    replicas: tuple[int, int],
    prometheus_url: str,
    query: str,
    threshold: str,
    metric_type: str,
    namespace: str | None = None,
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the document.

    Args:
        deployment: name of the Kubernetes deployment, and of the object.
        replicas: the fewest and the most.
        prometheus_url: address of Prometheus, as KEDA reaches it.
        query: of Prometheus.
        threshold: value of the query at which nothing changes.
        metric_type: ``Value``, or ``AverageValue`` for the value per replica.
        namespace: of the object; ``None``: the one in which it is applied.
        spec: further fields.
    """
    least, most = replicas
    metadata = {"name": deployment} if namespace is None else {"name": deployment, "namespace": namespace}
    trigger = {
        "type": "prometheus",
        "metricType": metric_type,
        "metadata": {"serverAddress": prometheus_url, "query": query, "threshold": threshold},
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"name": deployment},
            "minReplicaCount": least,
            "maxReplicaCount": most,
            **(spec or {}),
            "triggers": [trigger],
        },
    }
