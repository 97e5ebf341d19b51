"""Traffic of a plan: Envoy Gateway's weighted zones, and the scaling of each workload with KEDA."""

import itertools
from collections.abc import Mapping, Sequence

from streaminfer.placement.acting.workloads import Workload, documents, platform_name
from streaminfer.telemetry.exporters.rules.scaled_object import scaled_object

__all__ = ["scaled_objects", "zone_policies"]

_PARTS = 1_000
"""Weights are whole numbers: a share is given in thousandths."""


def zone_policies(
    shares: Mapping[str, tuple[str, Mapping[str, float]]], *, zones: Mapping[str, str] | None, namespace: str
) -> str:
    """Return a BackendTrafficPolicy for each cluster of users.

    Args:
        shares: by cluster, its model and the shares of its requests by site.
        zones: as of `envoy_policies`.
        namespace: likewise.
    """
    return documents(
        {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "BackendTrafficPolicy",
            "metadata": {"name": platform_name(f"{model}-{cluster}"), "namespace": namespace},
            "spec": {
                "targetRefs": [
                    {
                        "group": "gateway.networking.k8s.io",
                        "kind": "HTTPRoute",
                        "name": platform_name(f"{model}-{cluster}"),
                    }
                ],
                "loadBalancer": {
                    "type": "LeastRequest",
                    "zoneAware": {
                        "weightedZones": [
                            {"zone": zone, "weight": max(round(share * _PARTS), 1)}
                            for zone, share in _by_zone(by_site, zones or {}).items()
                        ]
                    },
                },
            },
        }
        for cluster, (model, by_site) in shares.items()
    )


def _by_zone(shares: Mapping[str, float], zones: Mapping[str, str]) -> dict[str, float]:
    by_zone: dict[str, float] = {}
    for site, share in shares.items():
        if share > 0:
            zone = zones.get(site, site)
            by_zone[zone] = by_zone.get(zone, 0.0) + share
    return by_zone


def scaled_objects(
    plans: Sequence[Sequence[Workload]], *, spare: int, prometheus: str, query: str, namespace: str
) -> str:
    """Return a ScaledObject for each workload.

    Args:
        plans: the workloads of each.
        spare: as of `keda_scaled_objects`.
        prometheus: likewise.
        query: likewise.
        namespace: likewise.
    """
    by_name: dict[str, list[Workload]] = {}
    for workload in itertools.chain.from_iterable(plans):
        by_name.setdefault(workload.name, []).append(workload)
    return documents(
        scaled_object(
            name,
            replicas=(
                min(it.replicas for it in found) if len(found) == len(plans) else 0,
                max(it.replicas for it in found) + spare,
            ),
            prometheus_url=prometheus,
            query=query.replace("{workload}", name).replace("{namespace}", namespace),
            threshold=f"{min(it.rate for it in found):.6g}",
            metric_type="AverageValue",
            namespace=namespace,
        )
        for name, found in by_name.items()
    )
