"""KEDA ``ScaledObject``: scales a deployment by a Prometheus query."""

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
    """Return the ``ScaledObject`` as a dictionary.

    Args:
        deployment: name of the Kubernetes deployment, and of the object.
        replicas: smallest and largest number of replicas.
        prometheus_url: address of Prometheus for KEDA.
        query: PromQL query.
        threshold: value of the query at which KEDA keeps the number of replicas.
        metric_type: ``Value``, or ``AverageValue`` for the value per replica.
        namespace: namespace of the object; ``None``: the namespace in which it is applied.
        spec: further fields of ``spec``.
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
