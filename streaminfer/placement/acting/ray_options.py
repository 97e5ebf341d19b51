"""Options of Ray Serve deployments: one per workload, kept at its site by a custom resource."""

from collections.abc import Mapping
from typing import Any

from streaminfer.placement.acting.workloads import occupied, plan_workloads
from streaminfer.placement.plan_record import Plan

__all__ = ["ray_options"]

_SITE_RESOURCE_AMOUNT = 0.001
"""Amount of the site's custom resource per replica; the resource only has to exist."""


def ray_options(plan: Plan, *, resources: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the options of a Ray Serve deployment for each workload: ``deployment.options(**options[name])``.

    Replicas stay at their site by a custom resource: start Ray there with ``--resources='{"site:NAME": 1}'``.

    Args:
        plan: the plan.
        resources: kind of device → resources of a slot, such as ``{"a10": {"num_gpus": 1}, "cpu": {"num_cpus": 2}}``.

    Raises:
        TypeError, ValueError: a kind of device is missing, or an amount is not a number.
    """
    options: dict[str, dict[str, Any]] = {}
    for workload in plan_workloads(plan):
        actor: dict[str, Any] = dict(occupied(workload, resources))
        if workload.memory_bytes and "num_gpus" not in actor:  # else it is the accelerator's memory
            actor["memory"] = workload.memory_bytes
        actor["resources"] = {f"site:{workload.site}": _SITE_RESOURCE_AMOUNT}
        options[workload.name] = {"num_replicas": workload.replicas, "ray_actor_options": actor}
    return options
