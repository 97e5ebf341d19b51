"""Options of Ray Serve deployments, a deployment for each workload, held at its site by a custom resource."""

from collections.abc import Mapping, Sequence
from typing import Any

from streaminfer.placement.acting.workloads import Workload, of_model

__all__ = ["deployment_options"]

_A_LITTLE = 0.001
"""Of the site's custom resource for each replica: it only has to be there."""


def deployment_options(
    workloads: Sequence[Workload], *, resources: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return the options by the name of the workload; the arguments are those of `ray_options`."""
    options: dict[str, dict[str, Any]] = {}
    for workload in workloads:
        wanted = of_model("resources", resources, workload.device)
        actor: dict[str, Any] = {name: amount * workload.slots for name, amount in wanted.items()}
        if workload.memory_bytes and "num_gpus" not in actor:  # else it is the accelerator's memory
            actor["memory"] = workload.memory_bytes
        actor["resources"] = {f"site:{workload.site}": _A_LITTLE}
        options[workload.name] = {"num_replicas": workload.replicas, "ray_actor_options": actor}
    return options
