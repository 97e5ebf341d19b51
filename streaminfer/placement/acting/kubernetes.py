"""Kubernetes manifests of a plan: a Deployment for each workload, a Service for each model that prefers its zone."""

from collections.abc import Mapping, Sequence
from typing import Any

from streaminfer._internal.validation import check_count, expected
from streaminfer.placement.acting.workloads import Workload, documents, of_model, platform_name

__all__ = ["workload_manifests"]

_ZONE = "topology.kubernetes.io/zone"
_HOST = "kubernetes.io/hostname"
_NAME = "app.kubernetes.io/name"
_VARIANT, _SHARD, _SITE = (f"streaminfer.dev/{key}" for key in ("variant", "shard", "site"))
_MEBI = 2**20


def workload_manifests(
    workloads: Sequence[Workload],
    *,
    images: Mapping[str, str],
    resources: Mapping[str, Mapping[str, float]],
    zones: Mapping[str, str] | None,
    port: int,
    namespace: str,
) -> str:
    """Return the manifests as YAML documents; the arguments are those of `kubernetes_manifests`."""
    check_count("port", port, at_most=65_535)
    zones = {} if zones is None else zones
    records = [_deployment(workload, images, resources, zones, port, namespace) for workload in workloads]
    fronts = sorted({(workload.model, workload.shard) for workload in workloads})
    return documents([*records, *(_service(model, shard, port, namespace) for model, shard in fronts)])


def _deployment(
    workload: Workload,
    images: Mapping[str, str],
    resources: Mapping[str, Mapping[str, float]],
    zones: Mapping[str, str],
    port: int,
    namespace: str,
) -> dict[str, Any]:
    labels = {
        _NAME: platform_name(workload.model),
        _VARIANT: platform_name(workload.variant),
        _SHARD: str(workload.shard),
        _SITE: platform_name(workload.site),
        "app.kubernetes.io/instance": workload.name,
    }
    selector = {"matchLabels": {"app.kubernetes.io/instance": workload.name}}
    zone = zones.get(workload.site, workload.site)
    in_zone = {"matchExpressions": [{"key": _ZONE, "operator": "In", "values": [zone]}]}
    probe = {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "periodSeconds": 2}
    container = {
        "name": "model",
        "image": of_model("images", images, workload.model),
        "env": [
            {"name": "STREAMINFER_VARIANT", "value": workload.variant},
            {"name": "STREAMINFER_SHARD", "value": str(workload.shard)},
        ],
        "ports": [{"name": "http", "containerPort": port}],
        "readinessProbe": probe,
        "resources": _resources(workload, of_model("resources", resources, workload.device)),
    }
    spread = {"maxSkew": 1, "topologyKey": _HOST, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
    pod = {
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [in_zone]}}
        },
        "topologySpreadConstraints": [spread],
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": workload.name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": workload.replicas,
            "selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _resources(workload: Workload, of_device: Mapping[str, float]) -> dict[str, Any]:
    wanted = {name: _quantity(name, amount * workload.slots) for name, amount in of_device.items()}
    if workload.memory_bytes and not any("/" in name for name in of_device):  # else it is the accelerator's memory
        wanted["memory"] = f"{-(-workload.memory_bytes // _MEBI):.0f}Mi"
    # extended resources, such as nvidia.com/gpu, and memory are what a pod may not exceed; a CPU may idle elsewhere
    limits = {name: amount for name, amount in wanted.items() if "/" in name or name == "memory"}
    return {"requests": wanted} | ({"limits": limits} if limits else {})


def _quantity(name: str, amount: float) -> str:
    if amount == round(amount):
        return f"{amount:.0f}"
    if "/" in name:
        raise ValueError(expected("resources", f"whole numbers of {name}, which Kubernetes does not divide", amount))
    return f"{round(amount * 1000)}m"


def _service(model: str, shard: int, port: int, namespace: str) -> dict[str, Any]:
    name = platform_name(f"{model}-{shard}" if shard else model)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {_NAME: platform_name(model), _SHARD: str(shard)},
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
            "trafficDistribution": "PreferSameZone",
        },
    }
