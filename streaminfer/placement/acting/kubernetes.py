"""Kubernetes manifests of a plan: a Deployment for each workload, Services that prefer their zone."""

from collections.abc import Mapping
from typing import Any

from streaminfer._internal.validation import check_choice, check_count, expected
from streaminfer.placement.acting.workloads import (
    Workload,
    documents,
    occupied,
    of_model,
    plan_workloads,
    platform_name,
    zone_of,
)
from streaminfer.placement.plan_record import Plan

__all__ = ["kubernetes_manifests"]

_ZONE = "topology.kubernetes.io/zone"
_HOST = "kubernetes.io/hostname"
_NAME = "app.kubernetes.io/name"
_VARIANT, _SHARD, _SITE = (f"streaminfer.dev/{key}" for key in ("variant", "shard", "site"))
_MEBI = 2**20


def kubernetes_manifests(
    plan: Plan,
    *,
    images: Mapping[str, str],
    resources: Mapping[str, Mapping[str, float]],
    zones: Mapping[str, str] | None = None,
    site: str | None = None,
    port: int = 8000,
    namespace: str = "default",
) -> str:
    """Return Kubernetes manifests as YAML: Deployments that stay in their zone, and Services that prefer it.

    A container learns its variant and shard from ``STREAMINFER_VARIANT`` and ``STREAMINFER_SHARD``, and is ready when
    ``/v2/health/ready`` of the Open Inference Protocol says so. A model's Service has the pods of all variants that
    take requests; each later shard of a variant has a Service of its own, ``MODEL-VARIANT-SHARD``.

    Args:
        plan: the plan.
        images: the image of each model.
        resources: by kind of device, what one slot is, such as ``{"a10": {"nvidia.com/gpu": 1}, "cpu": {"cpu": 2}}``.
        zones: the value of the nodes' label ``topology.kubernetes.io/zone`` by site; ``None``, or a site that it does
            not name: the site's name.
        site: only what runs there, where each site is a Kubernetes cluster of its own; ``None``: everything.
        port: that the containers and the Services listen on.
        namespace: of all objects.

    Raises:
        TypeError, ValueError: an image or a device is missing, the problem has no such site, or Kubernetes can have no
            such zone or cannot give the part of a device.
    """
    check_count("port", port, at_most=65_535)
    workloads = plan_workloads(plan)
    if site is not None:
        check_choice("site", site, tuple(it.name for it in plan.problem.sites))
        workloads = tuple(it for it in workloads if it.site == site)
    records = [_deployment(workload, images, resources, zones, port, namespace) for workload in workloads]
    # every variant takes a model's requests; what a shard sends on is for the next one of its own variant
    fronts = sorted({(it.model, it.variant if it.shard else "", it.shard) for it in workloads})
    return documents([*records, *(_service(*front, port, namespace) for front in fronts)])


def _deployment(
    workload: Workload,
    images: Mapping[str, str],
    resources: Mapping[str, Mapping[str, float]],
    zones: Mapping[str, str] | None,
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
    zone = zone_of(workload.site, zones)
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
        "resources": _resources(workload, occupied(workload, resources)),
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


def _resources(workload: Workload, amounts: Mapping[str, float]) -> dict[str, Any]:
    wanted = {name: _quantity(name, amount) for name, amount in amounts.items()}
    if workload.memory_bytes and not any("/" in name for name in amounts):  # else it is the accelerator's memory
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


def _service(model: str, variant: str, shard: int, port: int, namespace: str) -> dict[str, Any]:
    name = platform_name(f"{model}-{variant}-{shard}" if shard else model)
    of_variant = {_VARIANT: platform_name(variant)} if shard else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {_NAME: platform_name(model), **of_variant, _SHARD: str(shard)},
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
            "trafficDistribution": "PreferSameZone",
        },
    }
