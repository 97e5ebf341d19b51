"""What a `Plan` becomes: manifests, zone weights, scaling, options of Ray, and `Replicas`."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from streaminfer._internal.validation import check_choice, check_count, check_instance
from streaminfer.placement.acting.balancing import balanced_replicas
from streaminfer.placement.acting.kubernetes import workload_manifests
from streaminfer.placement.acting.ray_options import deployment_options
from streaminfer.placement.acting.traffic import scaled_objects, zone_policies
from streaminfer.placement.acting.workloads import Workload
from streaminfer.placement.plan_record import Plan
from streaminfer.placement.problem import check_unique
from streaminfer.routing.replicas.replica_set import Replicas

__all__ = [
    "envoy_policies",
    "keda_scaled_objects",
    "kubernetes_manifests",
    "plan_replicas",
    "plan_workloads",
    "ray_options",
    "site_shares",
]

_RATE = 'sum(rate(streaminfer_requests_total{pod=~"{workload}-.*",namespace="{namespace}"}[1m]))'


def plan_workloads(plan: Plan) -> tuple[Workload, ...]:
    """Return what a plan runs: for each shard, site and kind of device the replicas and their rate.

    Raises:
        TypeError: not a plan.
        ValueError: two would have the same name on a platform, such as variant ``c-d`` of ``b`` and ``d`` of ``b-c``.
    """
    check_instance("plan", plan, lambda it: isinstance(it, Plan), "a Plan")
    shards = {(model.name, variant.name): variant.shards for model in plan.problem.models for variant in model.variants}
    counts: Counter[Workload] = Counter()
    rates: dict[Workload, float] = defaultdict(float)
    for group in plan.replicas:
        parts = zip(group.sites, group.kinds, shards[group.model, group.variant], strict=True)
        for number, (site, kind, shard) in enumerate(parts):
            one = Workload(
                model=group.model, variant=group.variant, shard=number, site=site, device=kind, replicas=1, rate=0.0,
                slots=shard.slots, memory_bytes=shard.memory_bytes,
            )  # fmt: skip
            counts[one] += group.replicas
            rates[one] += group.replicas * group.max_rate
    found = tuple(attrs.evolve(one, replicas=count, rate=rates[one] / count) for one, count in counts.items())
    check_unique("plan", [workload.name for workload in found])
    return found


def site_shares(plan: Plan, *, hour: int | None = None) -> dict[str, dict[str, float]]:
    """Return, for each cluster that is served, the shares of its requests by the site that they go to first.

    Args:
        plan: the plan.
        hour: one of the plan's; ``None``: the busiest.

    Raises:
        TypeError: the plan has no such hour.
    """
    check_instance("plan", plan, lambda it: isinstance(it, Plan), "a Plan")
    hours = sorted({at for at, _ in plan.assignments})
    check_instance("hour", hour, lambda it: it is None or it in hours, "one of " + ", ".join(map(str, hours)))
    assignment = plan.assignment if hour is None else plan.assignments[hour, plan.problem.scenarios[0].name]
    return plan.shares_by_site(assignment)


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
    ``/v2/health/ready`` of the Open Inference Protocol says so.

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
        TypeError, ValueError: an image or a device is missing, the problem has no such site, or Kubernetes cannot give
            the part of a device.
    """
    if site is not None:
        check_choice("site", site, tuple(it.name for it in plan.problem.sites))
    workloads = [it for it in plan_workloads(plan) if site is None or it.site == site]
    return workload_manifests(
        workloads, images=images, resources=resources, zones=zones, port=port, namespace=namespace
    )


def envoy_policies(
    plan: Plan,
    *,
    zones: Mapping[str, str] | None = None,
    hour: int | None = None,
    namespace: str = "default",
) -> str:
    """Return a BackendTrafficPolicy of Envoy Gateway for each cluster of users, with the weights of its zones.

    Each belongs to an HTTPRoute of its own name, ``MODEL-CLUSTER``, at the gateway where the cluster's users enter.

    Args:
        plan: the plan.
        zones: as of `kubernetes_manifests`.
        hour: one of the plan's; ``None``: the busiest.
        namespace: of all objects.

    Raises:
        TypeError: the plan has no such hour.
    """
    models = {cluster.name: cluster.model for cluster in plan.problem.clusters}
    shares = {cluster: (models[cluster], row) for cluster, row in site_shares(plan, hour=hour).items()}
    return zone_policies(shares, zones=zones, namespace=namespace)


def keda_scaled_objects(
    *plans: Plan, prometheus: str, query: str = _RATE, spare: int = 0, namespace: str = "default"
) -> str:
    """Return a ScaledObject of KEDA for each workload: from the least to the most replicas of the plans.

    A replica is added when each has more requests per second than the plans count on: than the least of them. A
    workload that does not run in each of the plans may be scaled to nothing.

    Args:
        *plans: one, or those of `plan_hours`.
        prometheus: address of the server.
        query: returns the requests per second of a workload; ``{workload}`` and ``{namespace}`` stand for the names.
        spare: replicas above the most of the plans, ≥ 0.
        namespace: of all objects.

    Raises:
        TypeError, ValueError: not plans, or ``spare`` is no such number.
    """
    check_count("spare", spare, at_least=0)
    return scaled_objects(
        list(map(plan_workloads, plans)), spare=spare, prometheus=prometheus, query=query, namespace=namespace
    )


def ray_options(plan: Plan, *, resources: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the options of a Ray Serve deployment for each workload: ``deployment.options(**options[name])``.

    Replicas stay at their site by a custom resource: start Ray there with ``--resources='{"site:NAME": 1}'``.

    Args:
        plan: the plan.
        resources: by kind of device, what one slot is, such as ``{"a10": {"num_gpus": 1}, "cpu": {"num_cpus": 2}}``.

    Raises:
        ValueError: a kind of device is missing.
    """
    return deployment_options(plan_workloads(plan), resources=resources)


def plan_replicas(
    plan: Plan,
    cluster: str,
    services: Mapping[str, Any | Sequence[Any]],
    *,
    hour: int | None = None,
    spill_penalty: float = 4.0,
    **options: Any,
) -> Replicas:
    """Return the `Replicas` of one cluster of users.

    The site that most of its requests go to is its zone. Other sites of the plan get requests by weight and load; those
    that the plan does not use for this cluster only if they should respond much sooner.

    Args:
        plan: the plan.
        cluster: the name of the users' cluster.
        services: by the name of the site, a service or several, such as stacks around backends there.
        hour: one of the plan's; ``None``: the busiest.
        spill_penalty: by which factor sooner a site that is not planned must be expected to respond, above 1.
        options: of `Replicas`.

    Raises:
        TypeError, ValueError: the plan does not serve the cluster, or a site that it uses has no service.
    """
    shares = site_shares(plan, hour=hour)
    name = check_choice("cluster", cluster, tuple(shares))
    return balanced_replicas(shares[name], services, spill_penalty=spill_penalty, **options)
