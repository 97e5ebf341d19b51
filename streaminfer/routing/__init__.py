"""Choice between services: a better or a cheaper one, or one of several alike."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.routing.fallback_router import FallbackRouter
    from streaminfer.routing.fleet.discovery import DnsDiscovery
    from streaminfer.routing.fleet.health import HealthCheck
    from streaminfer.routing.replica import Replica
    from streaminfer.routing.replica_statistics import ReplicasStatistics, ReplicaStatistics
    from streaminfer.routing.replicas import Replicas
    from streaminfer.routing.route import Route
    from streaminfer.routing.router_statistics import RouterStatistics, RouteStatistics
    from streaminfer.routing.split.canary import Canary, CanaryStatistics, SideStatistics
    from streaminfer.routing.split.shadow import Shadow, ShadowStatistics

__all__ = [
    "Canary",
    "CanaryStatistics",
    "DnsDiscovery",
    "FallbackRouter",
    "HealthCheck",
    "Replica",
    "ReplicaStatistics",
    "Replicas",
    "ReplicasStatistics",
    "Route",
    "RouteStatistics",
    "RouterStatistics",
    "Shadow",
    "ShadowStatistics",
    "SideStatistics",
]

_HOMES = {
    "Canary": "split.canary",
    "CanaryStatistics": "split.canary",
    "DnsDiscovery": "fleet.discovery",
    "FallbackRouter": "fallback_router",
    "HealthCheck": "fleet.health",
    "Replica": "replica",
    "ReplicaStatistics": "replica_statistics",
    "Replicas": "replicas",
    "ReplicasStatistics": "replica_statistics",
    "Route": "route",
    "RouteStatistics": "router_statistics",
    "RouterStatistics": "router_statistics",
    "Shadow": "split.shadow",
    "ShadowStatistics": "split.shadow",
    "SideStatistics": "split.canary",
}
"""Who uses one primitive does not load the others."""


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
