"""Placement: at which sites which variants of which models run, so that the promised latency holds at least cost."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.placement.distribution import Distribution
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
    "DeviceGroup",
    "Distribution",
    "Link",
    "Model",
    "Problem",
    "Scenario",
    "ServiceClass",
    "Shard",
    "Site",
    "UserCluster",
    "Variant",
]

_PROBLEM = {name: "placement.problem" for name in __all__ if name != "Distribution"}
_HOMES = _PROBLEM | {"Distribution": "placement.distribution"}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
