"""Placement: at which sites which variants of which models run, so that the promised latency holds at least cost."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.placement.check import ClusterCheck, PlanCheck, replay
    from streaminfer.placement.conflicts import Constraint, InfeasiblePlacement, Relaxation
    from streaminfer.placement.distribution import Distribution
    from streaminfer.placement.plan_record import Plan, Prediction, ReplicaGroup
    from streaminfer.placement.planning import plan, plan_hours, repair
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
    "AccessProfile",
    "ClusterCheck",
    "Constraint",
    "DeviceGroup",
    "Distribution",
    "InfeasiblePlacement",
    "Link",
    "Model",
    "Plan",
    "PlanCheck",
    "Prediction",
    "Price",
    "PriceTable",
    "Problem",
    "Relaxation",
    "ReplicaGroup",
    "Scenario",
    "ServiceClass",
    "Shard",
    "Site",
    "UserCluster",
    "Variant",
    "plan",
    "plan_hours",
    "prices",
    "repair",
    "replay",
]

_HOMES = {
    "ANY_SITE": "placement.problem",
    "AccessProfile": "placement.problem",
    "ClusterCheck": "placement.check",
    "Constraint": "placement.conflicts",
    "DeviceGroup": "placement.problem",
    "Distribution": "placement.distribution",
    "InfeasiblePlacement": "placement.conflicts",
    "Link": "placement.problem",
    "Model": "placement.problem",
    "Plan": "placement.plan_record",
    "PlanCheck": "placement.check",
    "Prediction": "placement.plan_record",
    "Price": "placement.price_table",
    "PriceTable": "placement.price_table",
    "Problem": "placement.problem",
    "Relaxation": "placement.conflicts",
    "ReplicaGroup": "placement.plan_record",
    "Scenario": "placement.problem",
    "ServiceClass": "placement.problem",
    "Shard": "placement.problem",
    "Site": "placement.problem",
    "UserCluster": "placement.problem",
    "Variant": "placement.problem",
    "plan": "placement.planning",
    "plan_hours": "placement.planning",
    "prices": "placement.price_table",
    "repair": "placement.planning",
    "replay": "placement.check",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
