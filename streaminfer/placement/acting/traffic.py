"""Traffic of a plan: shares by site, Envoy Gateway's weighted zones, and the scaling of each workload with KEDA."""

import itertools
from collections import defaultdict
from collections.abc import Mapping

from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.placement.acting.workloads import (
    Workload,
    check_text,
    documents,
    plan_workloads,
    platform_name,
    zone_of,
)
from streaminfer.placement.plan_record import Plan
from streaminfer.telemetry.exporters.rules.scaled_object import scaled_object

__all__ = ["envoy_policies", "keda_scaled_objects", "site_shares"]

_PARTS = 1_000
"""Weights are whole numbers: a share is given in thousandths."""

# the two last parts of a pod's name have no hyphen, so the pods of "v-eu-a10-spot" do not count for "v-eu-a10"
_RATE = 'sum(rate(streaminfer_requests_total{pod=~"{workload}-[^-]+-[^-]+",namespace="{namespace}"}[1m]))'


def site_shares(plan: Plan, *, hour: int | None = None) -> dict[str, dict[str, float]]:
    """Return, for each served cluster, the shares of its requests by the site that they go to first.

    The shares are those of the first scenario of the problem.

    Args:
        plan: the plan.
        hour: an hour of the plan; ``None``: for each cluster, the busiest hour that serves it.

    Raises:
        TypeError: the plan has no such hour.
    """
    check_instance("plan", plan, Plan, "a Plan")
    hours = sorted({at for at, _ in plan.assignments})
    check_instance("hour", hour, lambda it: it is None or it in hours, "one of " + ", ".join(map(str, hours)))
    if hour is None:
        return plan.busiest_shares()
    return plan.shares_by_site(plan.assignments[hour, plan.problem.scenarios[0].name])


def envoy_policies(
    plan: Plan,
    *,
    zones: Mapping[str, str] | None = None,
    hour: int | None = None,
    namespace: str = "default",
) -> str:
    """Return a BackendTrafficPolicy of Envoy Gateway for each cluster of users, with the weights of its zones.

    Each policy belongs to the HTTPRoute with the same name, ``MODEL-CLUSTER``, at the gateway of the cluster's users.

    Args:
        plan: the plan.
        zones: as for `kubernetes_manifests`.
        hour: an hour of the plan; ``None``: for each cluster, the busiest hour that serves it.
        namespace: namespace of all objects.

    Raises:
        TypeError, ValueError: the plan has no such hour, Kubernetes allows no such zone, or ``namespace`` is no text.
    """
    check_text("namespace", namespace)
    shares = site_shares(plan, hour=hour)
    names = {it.name: platform_name(f"{it.model}-{it.name}") for it in plan.problem.clusters}
    return documents(
        {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "BackendTrafficPolicy",
            "metadata": {"name": names[cluster], "namespace": namespace},
            "spec": {
                "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": names[cluster]}],
                "loadBalancer": {
                    "type": "LeastRequest",
                    "zoneAware": {
                        "weightedZones": [
                            {"zone": zone, "weight": max(round(share * _PARTS), 1)}
                            for zone, share in _by_zone(by_site, zones).items()
                        ]
                    },
                },
            },
        }
        for cluster, by_site in shares.items()
    )


def keda_scaled_objects(
    *plans: Plan, prometheus: str, query: str = _RATE, spare: int = 0, namespace: str = "default"
) -> str:
    """Return a KEDA ScaledObject for each workload, from the fewest to the most replicas of the plans.

    KEDA adds a replica when the mean requests per second per replica exceed the lowest rate of the plans. It may scale
    a workload to zero if the workload does not run in each of the plans. Its pods then count no requests, so nothing
    starts them again unless ``query`` counts the requests where they arrive, such as at the gateway.

    Args:
        *plans: at least one plan, such as those of `plan_hours`.
        prometheus: address of the server.
        query: returns the requests per second of a workload; ``{workload}`` and ``{namespace}`` stand for the names.
            The default sums what the pods of the Deployment count.
        spare: additional replicas above the most of the plans, ≥ 0.
        namespace: namespace of all objects.

    Raises:
        TypeError, ValueError: not plans, or another argument is of the wrong type or out of range.
    """
    if not plans:
        raise TypeError(expected("plans", "at least one Plan", plans))
    for argument, text in (("prometheus", prometheus), ("query", query), ("namespace", namespace)):
        check_text(argument, text)
    spare = check_count("spare", spare, at_least=0)
    by_name: dict[str, list[Workload]] = {}
    for workload in itertools.chain.from_iterable(map(plan_workloads, plans)):
        by_name.setdefault(workload.name, []).append(workload)
    return documents(
        scaled_object(
            name,
            replicas=(
                min(it.replicas for it in group) if len(group) == len(plans) else 0,
                max(it.replicas for it in group) + spare,
            ),
            prometheus_url=prometheus,
            query=query.replace("{workload}", name).replace("{namespace}", namespace),
            threshold=f"{min(it.rate for it in group):.6g}",
            metric_type="AverageValue",
            namespace=namespace,
        )
        for name, group in by_name.items()
    )


def _by_zone(shares: Mapping[str, float], zones: Mapping[str, str] | None) -> dict[str, float]:
    by_zone: dict[str, float] = defaultdict(float)
    for site, share in shares.items():
        if share > 0:
            by_zone[zone_of(site, zones)] += share
    return by_zone
