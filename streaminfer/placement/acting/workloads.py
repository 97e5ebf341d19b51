"""`plan_workloads`: the workloads of a plan for a platform, each with equal replicas of a shard at a site."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from hashlib import blake2s
from typing import Any

import attrs

from streaminfer._internal.validation import check_amount, check_instance, expected, is_name
from streaminfer.placement.plan_record import Plan
from streaminfer.placement.problem import check_unique
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml

__all__ = [
    "Workload",
    "check_text",
    "documents",
    "occupied",
    "of_model",
    "plan_workloads",
    "platform_name",
    "zone_of",
]

_LONGEST_NAME = 46
"""Kubernetes cuts a pod's name to 58 characters before its last five; two hyphens and a hash of up to ten fit in."""

_DIGEST_BYTES = 3

_LABEL_VALUE = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@attrs.frozen(kw_only=True)
class Workload:
    """Equal replicas at a site.

    Attributes:
        model: the name of the model.
        variant: the name of the variant.
        shard: index of the shard in the variant, from 0.
        site: the name of the site.
        device: the kind of device.
        replicas: number of replicas.
        rate: planned requests per second of each replica.
        slots: slots of the device that each replica occupies.
        memory_bytes: memory of each replica.
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
        """Name of the workload on a platform."""
        shard = f"-{self.shard}" if self.shard else ""
        return platform_name(f"{self.model}-{self.variant}{shard}-{self.site}-{self.device}")


def plan_workloads(plan: Plan) -> tuple[Workload, ...]:
    """Return the workloads of a plan: for each shard, site and kind of device, the replicas and their rate.

    Raises:
        TypeError: not a plan.
        ValueError: two workloads would have the same name, such as variant ``c-d`` of ``b`` and ``d`` of ``b-c``.
    """
    check_instance("plan", plan, Plan, "a Plan")
    shards = {(model.name, variant.name): variant.shards for model in plan.problem.models for variant in model.variants}
    counts: Counter[Workload] = Counter()
    rates: dict[Workload, float] = defaultdict(float)
    for group in plan.replicas:
        parts = zip(group.sites, group.kinds, shards[group.model, group.variant], strict=True)
        for number, (site, kind, shard) in enumerate(parts):
            one = Workload(
                model=group.model, variant=group.variant, shard=number, site=site, device=kind, replicas=1, rate=0.0,
                slots=shard.slots, memory_bytes=shard.memory_bytes,
            )  # fmt: skip
            counts[one] += group.replicas
            rates[one] += group.replicas * group.max_rate
    workloads = tuple(attrs.evolve(one, replicas=count, rate=rates[one] / count) for one, count in counts.items())
    check_unique("plan", [workload.name for workload in workloads])
    return workloads


def platform_name(text: str) -> str:
    """Return a name of lower-case letters, digits and hyphens; two texts never have the same name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name == text and len(name) <= _LONGEST_NAME and not name[0].isdigit():
        return name
    digest = blake2s(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"s-{name}"[: _LONGEST_NAME - len(digest) - 1].rstrip("-") + f"-{digest}"


def zone_of(site: str, zones: Mapping[str, str] | None) -> str:
    """Return the zone of a site: its entry in ``zones``, or the site's name.

    Raises:
        TypeError, ValueError: ``zones`` is not a mapping, or Kubernetes allows no label of this value.
    """
    check_instance("zones", zones, Mapping | None, "a mapping or None")
    zone = (zones or {}).get(site, site)
    expectation = "a value of a Kubernetes label, of up to 63 letters, digits, '-', '_' and '.'"
    check_instance(f"zones[{site!r}]", zone, str, expectation)
    if not _LABEL_VALUE.fullmatch(zone):
        raise ValueError(expected(f"zones[{site!r}]", expectation, zone))
    return zone


def check_text(name: str, value: object) -> None:
    """Check an argument such as the namespace of Kubernetes objects.

    Raises:
        TypeError: it is not a text, or empty.
    """
    check_instance(name, value, is_name, "a text that is not empty")


def of_model(name: str, mapping: Mapping[str, Any], key: str) -> Any:
    """Return the value of an argument for a model or a kind of device.

    Raises:
        TypeError: the argument is not a mapping.
        ValueError: the argument has no value for ``key``.
    """
    check_instance(name, mapping, Mapping, "a mapping")
    if key not in mapping:
        raise ValueError(expected(name, f"a value for {key!r}", mapping))
    return mapping[key]


def occupied(workload: Workload, resources: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the resources of a replica, from the resources of one slot of its kind of device.

    Raises:
        TypeError, ValueError: the kind of device is missing, or an amount is not a number.
    """
    name = f"resources[{workload.device!r}]"
    return {
        key: workload.slots * check_amount(f"{name}[{key!r}]", amount)
        for key, amount in of_model("resources", resources, workload.device).items()
    }


def documents(records: Iterable[Mapping[str, Any]]) -> str:
    """Return YAML documents.

    Raises:
        ValueError: two records of a kind have the same name, so a platform would keep only one of them.
    """
    record_list = list(records)
    check_unique("plan", [f"{record['kind']} {record['metadata']['name']}" for record in record_list])
    return "---\n".join(map(to_yaml, record_list))
