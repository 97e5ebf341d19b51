"""Choice of a service for each request: a better or a cheaper model, a replica, or a new version."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.routing.fallback.fallback_router import FallbackRouter
    from streaminfer.routing.fallback.route import Route
    from streaminfer.routing.fallback.statistics import RouterStatistics, RouteStatistics
    from streaminfer.routing.replicas.discovery import DnsDiscovery
    from streaminfer.routing.replicas.health import HealthCheck
    from streaminfer.routing.replicas.replica import Replica
    from streaminfer.routing.replicas.replica_set import Replicas
    from streaminfer.routing.replicas.statistics import ReplicasStatistics, ReplicaStatistics
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
    "routing.fallback.fallback_router": ["FallbackRouter"],
    "routing.fallback.route": ["Route"],
    "routing.fallback.statistics": ["RouteStatistics", "RouterStatistics"],
    "routing.replicas.discovery": ["DnsDiscovery"],
    "routing.replicas.health": ["HealthCheck"],
    "routing.replicas.replica": ["Replica"],
    "routing.replicas.replica_set": ["Replicas"],
    "routing.replicas.statistics": ["ReplicaStatistics", "ReplicasStatistics"],
    "routing.split.canary": ["Canary", "CanaryStatistics", "SideStatistics"],
    "routing.split.shadow": ["Shadow", "ShadowStatistics"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
