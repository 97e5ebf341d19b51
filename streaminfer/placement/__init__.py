"""Placement: at which sites which variants of which models run, so that the promised latency holds at least cost."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.placement.acting.from_plan import (
        envoy_policies,
        keda_scaled_objects,
        kubernetes_manifests,
        plan_replicas,
        plan_workloads,
        ray_options,
        site_shares,
    )
    from streaminfer.placement.acting.live import RttMeter, with_measurements
    from streaminfer.placement.acting.workloads import Workload
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
    "ANY_SITE": "placement.problem",
    "END_TO_END": "placement.network.rtt_samples",
    "AccessProfile": "placement.problem",
    "AccessPromise": "placement.network.access",
    "ClusterCheck": "placement.check",
    "Constraint": "placement.conflicts",
    "DeviceGroup": "placement.problem",
    "Distribution": "placement.distribution",
    "FittedAccess": "placement.network.access",
    "InfeasiblePlacement": "placement.conflicts",
    "LatencyPromise": "placement.network.promise_watch",
    "Link": "placement.problem",
    "Model": "placement.problem",
    "Outages": "placement.network.outages",
    "PairSummary": "placement.network.rtt_samples",
    "Plan": "placement.plan_record",
    "PlanCheck": "placement.check",
    "Prediction": "placement.predictions",
    "Price": "placement.price_table",
    "PriceTable": "placement.price_table",
    "Problem": "placement.problem",
    "PromiseState": "placement.network.promise_watch",
    "PromiseWatch": "placement.network.promise_watch",
    "Relaxation": "placement.conflicts",
    "ReplicaGroup": "placement.plan_record",
    "RttMeter": "placement.acting.live",
    "RttSamples": "placement.network.rtt_samples",
    "Scenario": "placement.problem",
    "ServiceClass": "placement.problem",
    "Shard": "placement.problem",
    "Site": "placement.problem",
    "Unpromisable": "placement.network.access",
    "UserCluster": "placement.problem",
    "Variant": "placement.problem",
    "Workload": "placement.acting.workloads",
    "access_names": "placement.network.access",
    "envoy_policies": "placement.acting.from_plan",
    "keda_scaled_objects": "placement.acting.from_plan",
    "kubernetes_manifests": "placement.acting.from_plan",
    "load_access": "placement.network.access",
    "plan": "placement.planning",
    "plan_hours": "placement.planning",
    "plan_replicas": "placement.acting.from_plan",
    "plan_workloads": "placement.acting.from_plan",
    "prices": "placement.price_table",
    "ray_options": "placement.acting.from_plan",
    "repair": "placement.planning",
    "replay": "placement.check",
    "site_shares": "placement.acting.from_plan",
    "with_measurements": "placement.acting.live",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
