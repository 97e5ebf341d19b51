"""`Workload`: equal replicas of a shard at a site, which is what a plan asks a platform to run."""

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2s
from typing import Any

import attrs

from streaminfer._internal.validation import expected
from streaminfer.placement.problem import check_unique
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml

__all__ = ["Workload", "documents", "of_model", "platform_name"]

_LONGEST_NAME = 50
"""Kubernetes allows 63 characters, and appends up to ten to the names of pods."""


@attrs.frozen(kw_only=True)
class Workload:
    """Equal replicas at a site.

    Attributes:
        model: the name of the model.
        variant: the name of the variant.
        shard: which part of the variant, from 0.
        site: where it runs.
        device: the kind of device.
        replicas: how many.
        rate: requests per second for which the plan counts on each.
        slots: of the device that each occupies.
        memory_bytes: of each.
    """

    model: str
    variant: str
    shard: int
    site: str
    device: str
    replicas: int
    rate: float
    slots: float
    memory_bytes: float

    @property
    def name(self) -> str:
        """Its name on a platform."""
        shard = f"-{self.shard}" if self.shard else ""
        return platform_name(f"{self.model}-{self.variant}{shard}-{self.site}-{self.device}")


def platform_name(text: str) -> str:
    """Return a name of lower-case letters, digits and hyphens; two texts never share one."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name == text and len(name) <= _LONGEST_NAME and not name[0].isdigit():
        return name
    return f"s-{name[:_LONGEST_NAME]}".rstrip("-") + "-" + blake2s(text.encode(), digest_size=3).hexdigest()


def of_model(name: str, given: Mapping[str, Any], key: str) -> Any:
    """Return what a caller gave for a model or a kind of device.

    Raises:
        ValueError: nothing was given.
    """
    if key not in given:
        raise ValueError(expected(name, f"a value for {key!r}", given))
    return given[key]


def documents(records: Iterable[Mapping[str, Any]]) -> str:
    """Return YAML documents.

    Raises:
        ValueError: two of a kind have one name, so that a platform would keep one of them only.
    """
    every = list(records)
    check_unique("plan", [f"{record['kind']} {record['metadata']['name']}" for record in every])
    return "---\n".join(map(to_yaml, every))
