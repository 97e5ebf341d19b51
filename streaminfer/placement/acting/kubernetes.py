"""Kubernetes manifests of a plan: a Deployment for each workload, Services that prefer their zone."""

from collections.abc import Mapping
from typing import Any

from streaminfer._internal.validation import check_choice, check_count, expected
from streaminfer.placement.acting.workloads import (
    Workload,
    check_text,
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

    A container reads its variant and shard from ``STREAMINFER_VARIANT`` and ``STREAMINFER_SHARD``, and is ready when
    ``/v2/health/ready`` of the Open Inference Protocol reports it. A model's Service has the pods of all variants that
    take requests; each later shard of a variant has its own Service, ``MODEL-VARIANT-SHARD``.

    Args:
        plan: the plan.
        images: the image of each model.
        resources: kind of device → resources of a slot, such as ``{"a10": {"nvidia.com/gpu": 1}, "cpu": {"cpu": 2}}``.
        zones: site → value of the nodes' label ``topology.kubernetes.io/zone``; the default is the site's name.
        site: write only the objects of this site, if each site is a separate Kubernetes cluster; ``None``: all sites.
        port: port on which the containers and the Services listen.
        namespace: namespace of all objects.

    Raises:
        TypeError, ValueError: an image or a device is missing, the problem has no such site, Kubernetes allows no such
            zone, it cannot assign a part of a device, or ``namespace`` is not a text.
    """
    port = check_count("port", port, at_most=65_535)
    check_text("namespace", namespace)
    workloads = plan_workloads(plan)
    if site is not None:
        check_choice("site", site, tuple(it.name for it in plan.problem.sites))
        workloads = tuple(it for it in workloads if it.site == site)
    records = [_deployment(workload, images, resources, zones, port, namespace) for workload in workloads]
    # all variants take a model's requests, but a shard sends its outputs only to the next shard of its own variant
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
    # a pod must not exceed memory and extended resources, such as nvidia.com/gpu, but it may use idle CPUs
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
