"""Placement: chooses model variants and sites, so that the promised latency holds at the lowest cost."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.placement.acting.balancing import plan_replicas
    from streaminfer.placement.acting.kubernetes import kubernetes_manifests
    from streaminfer.placement.acting.live import RttMeter, with_measurements
    from streaminfer.placement.acting.ray_options import ray_options
    from streaminfer.placement.acting.traffic import envoy_policies, keda_scaled_objects, site_shares
    from streaminfer.placement.acting.workloads import Workload, plan_workloads
    from streaminfer.placement.check import ClusterCheck, PlanCheck, replay
    from streaminfer.placement.conflicts import Constraint, InfeasiblePlacement, Relaxation
    from streaminfer.placement.distribution import Distribution
    from streaminfer.placement.network.access import (
        AccessPromise,
        FittedAccess,
        Unpromisable,
        access_names,
        load_access,
    )
    from streaminfer.placement.network.outages import Outages
    from streaminfer.placement.network.promise_watch import LatencyPromise, PromiseState, PromiseWatch
    from streaminfer.placement.network.rtt_samples import END_TO_END, PairSummary, RttSamples
    from streaminfer.placement.plan_record import Plan, ReplicaGroup
    from streaminfer.placement.planning import plan, plan_hours, repair
    from streaminfer.placement.predictions import Prediction
    from streaminfer.placement.price_table import Price, PriceTable, prices
    from streaminfer.placement.problem import (
        ANY_SITE,
        AccessProfile,
        DeviceGroup,
        Link,
        Model,
        Problem,
        Scenario,
        ServiceClass,
        Shard,
        Site,
        UserCluster,
        Variant,
    )

__all__ = [
    "ANY_SITE",
    "END_TO_END",
    "AccessProfile",
    "AccessPromise",
    "ClusterCheck",
    "Constraint",
    "DeviceGroup",
    "Distribution",
    "FittedAccess",
    "InfeasiblePlacement",
    "LatencyPromise",
    "Link",
    "Model",
    "Outages",
    "PairSummary",
    "Plan",
    "PlanCheck",
    "Prediction",
    "Price",
    "PriceTable",
    "Problem",
    "PromiseState",
    "PromiseWatch",
    "Relaxation",
    "ReplicaGroup",
    "RttMeter",
    "RttSamples",
    "Scenario",
    "ServiceClass",
    "Shard",
    "Site",
    "Unpromisable",
    "UserCluster",
    "Variant",
    "Workload",
    "access_names",
    "envoy_policies",
    "keda_scaled_objects",
    "kubernetes_manifests",
    "load_access",
    "plan",
    "plan_hours",
    "plan_replicas",
    "plan_workloads",
    "prices",
    "ray_options",
    "repair",
    "replay",
    "site_shares",
    "with_measurements",
]

_HOMES = {
    "placement.acting.balancing": ["plan_replicas"],
    "placement.acting.kubernetes": ["kubernetes_manifests"],
    "placement.acting.live": ["RttMeter", "with_measurements"],
    "placement.acting.ray_options": ["ray_options"],
    "placement.acting.traffic": ["envoy_policies", "keda_scaled_objects", "site_shares"],
    "placement.acting.workloads": ["Workload", "plan_workloads"],
    "placement.check": ["ClusterCheck", "PlanCheck", "replay"],
    "placement.conflicts": ["Constraint", "InfeasiblePlacement", "Relaxation"],
    "placement.distribution": ["Distribution"],
    "placement.network.access": ["AccessPromise", "FittedAccess", "Unpromisable", "access_names", "load_access"],
    "placement.network.outages": ["Outages"],
    "placement.network.promise_watch": ["LatencyPromise", "PromiseState", "PromiseWatch"],
    "placement.network.rtt_samples": ["END_TO_END", "PairSummary", "RttSamples"],
    "placement.plan_record": ["Plan", "ReplicaGroup"],
    "placement.planning": ["plan", "plan_hours", "repair"],
    "placement.predictions": ["Prediction"],
    "placement.price_table": ["Price", "PriceTable", "prices"],
    "placement.problem": [
        "ANY_SITE",
        "AccessProfile",
        "DeviceGroup",
        "Link",
        "Model",
        "Problem",
        "Scenario",
        "ServiceClass",
        "Shard",
        "Site",
        "UserCluster",
        "Variant",
    ],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
