"""`Problem`: users, sites, models, the network between them, and the promises, as data.

Units: times in seconds, rates in requests/s, sizes in bytes, bandwidths in bytes/s, prices per hour in one currency.
All records are immutable; `attrs.evolve` makes a changed copy. A `Problem` checks that its parts fit together.
"""

import json
import math
import numbers
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from streaminfer._internal.validation import (
    check_amount,
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_number,
    check_share,
    expected,
    field_check,
    is_name,
)
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement.distribution import Distribution
from streaminfer.placement.records import read_record, write_record

__all__ = [
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
    "check_unique",
]

ANY_SITE = "any site"
"""Value of `Problem.failures`: the plan must survive the loss of each one of the sites."""

_NO_ENTRIES: Mapping[str, Any] = {}
_DISTRIBUTION = field_check(check_instance, Distribution, "a Distribution")


def _number(expectation: str, fits: Callable[[float], bool]) -> Any:
    return field_check(check_number, expectation, fits)


def _text(**options: Any) -> Any:
    return attrs.field(validator=field_check(check_instance, is_name, "a name", optional=bool(options)), **options)


def _amount(default: float = 0.0) -> Any:
    return attrs.field(default=default, validator=field_check(check_amount))


def _optional_amount() -> Any:
    return attrs.field(default=None, validator=field_check(check_amount, positive=True, optional=True))


def _records(kind: type, **options: Any) -> Any:
    """Return the field of a tuple of at least one record of a kind; it accepts any iterable."""

    def check(_instance: object, attribute: Any, value: Any) -> None:
        of_kind = isinstance(value, tuple) and all(isinstance(one, kind) for one in value)
        check_instance(attribute.name, value, lambda _: of_kind, f"a list of {kind.__name__}s")
        if not value:
            raise ValueError(expected(attribute.name, f"at least 1 {kind.__name__}", value))

    return attrs.field(converter=_tuple, validator=check, **options)


def _names(**options: Any) -> Any:
    check = field_check(check_instance, lambda it: isinstance(it, tuple) and all(map(is_name, it)), "a list of names")
    return attrs.field(converter=_tuple, validator=check, **options)


def _tuple(value: Iterable[Any]) -> Any:
    return value if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


def _are_service_times(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(it, ServiceTime) for it in value.values())


def _as_rates(value: Any) -> Any:
    return (value,) if isinstance(value, numbers.Real) else _tuple(value)


def _as_failures(value: Any) -> Any:
    groups = _tuple(value)
    return tuple((it,) if isinstance(it, str) else _tuple(it) for it in groups) if isinstance(groups, tuple) else groups


@attrs.frozen(kw_only=True)
class AccessProfile:
    """The last mile of a user: wired, Wi-Fi, 5G.

    Attributes:
        name: name of the profile.
        rtt: round-trip time between the user and the operator's edge; the planner adds it to that of the `Link`.
        bandwidth_bytes_s: bandwidth of one user; ``None``: transfers take no time.
    """

    name: str = _text()
    rtt: Distribution = attrs.field(validator=_DISTRIBUTION)
    bandwidth_bytes_s: float | None = _optional_amount()


@attrs.frozen(kw_only=True)
class Link:
    """The network between users and a site, or between two sites.

    Attributes:
        rtt: round-trip time.
        bandwidth_bytes_s: bandwidth for one request; ``None``: transfers take no time.
    """

    rtt: Distribution = attrs.field(validator=_DISTRIBUTION)
    bandwidth_bytes_s: float | None = _optional_amount()


@attrs.frozen(kw_only=True)
class ServiceClass:
    """A promise: at least ``share`` of the requests get a response of ``min_quality`` or better within ``slo_s``.

    Attributes:
        name: name of the class.
        slo_s: seconds from the user's request to the response at the user.
        share: promised share of the requests of every cluster; 0.99 makes ``slo_s`` a bound on p99.
        min_quality: variants of lower quality are not used.
    """

    name: str = _text()
    slo_s: float = attrs.field(validator=field_check(check_duration, positive=True))
    share: float = attrs.field(default=0.99, validator=field_check(check_share))
    min_quality: float = attrs.field(default=-math.inf, validator=_number("a number", lambda it: not math.isnan(it)))


@attrs.frozen(kw_only=True)
class UserCluster:
    """Users at one place who send requests to one model.

    Attributes:
        name: name of the cluster.
        rates: requests per second in each hour; a single number applies to all hours.
        access: the name of their `AccessProfile`.
        service_class: the name of their `ServiceClass`.
        model: the name of the `Model`.
        residency: a region that their data must not leave, one of `Site.regions`; ``None``: any region.
    """

    name: str = _text()
    rates: tuple[float, ...] = attrs.field(converter=_as_rates)
    access: str = _text()
    service_class: str = _text()
    model: str = _text()
    residency: str | None = _text(default=None)

    @rates.validator
    def _check_rates(self, _attribute: object, value: tuple[float, ...]) -> None:
        check_instance("rates", value, tuple, "requests per second by hour")
        if not value:
            raise ValueError(expected("rates", "at least one", value))
        for rate in value:
            check_number("rates", rate, "finite numbers ≥ 0", lambda it: 0 <= it < math.inf)


@attrs.frozen(kw_only=True)
class DeviceGroup:
    """Equal devices at a site.

    Attributes:
        kind: kind of device, such as ``"cpu"`` or ``"a10"``; the key of `Shard.service_time`.
        slots: how many devices there are; a replica occupies `Shard.slots` of them.
        price: price of an occupied slot.
        memory_bytes: memory that all replicas in this group share; ``None``: no limit.
    """

    kind: str = _text()
    slots: int = attrs.field(validator=field_check(check_count, at_least=0))
    price: float = _amount(1.0)
    memory_bytes: float | None = _optional_amount()


@attrs.frozen(kw_only=True)
class Site:
    """A place where models can run.

    Attributes:
        name: name of the site.
        devices: its devices by kind.
        price: price of using the site, in addition to the price of its slots.
        regions: the residency regions of the site.
    """

    name: str = _text()
    devices: Sequence[DeviceGroup] = _records(DeviceGroup)
    price: float = _amount()
    regions: Sequence[str] = _names(default=())


@attrs.frozen(kw_only=True)
class Shard:
    """A part of a model that runs on one device.

    Attributes:
        service_time: service time of a batch, by `DeviceGroup.kind`; the shard cannot run on other kinds. `fitted()` of
            a batcher's service time returns a learned one.
        memory_bytes: memory of one replica.
        slots: slots that one replica occupies; 0.5 if two replicas share a device, with the service times of sharing.
        transfer_bytes: bytes sent to the next shard for each request.
    """

    service_time: Mapping[str, ServiceTime] = attrs.field()
    memory_bytes: float = _amount()
    slots: float = attrs.field(default=1.0, validator=field_check(check_amount, positive=True))
    transfer_bytes: float = _amount()

    @service_time.validator
    def _check_times(self, _attribute: object, value: Mapping[str, ServiceTime]) -> None:
        expectation = "a mapping of device kinds to ServiceTimes, at least one"
        check_instance("service_time", value, _are_service_times, expectation)
        if not value:
            raise ValueError(expected("service_time", expectation, value))


@attrs.frozen(kw_only=True)
class Variant:
    """One form of a model: its size, precision or length.

    Attributes:
        name: name of the variant.
        shards: shards in the order in which a request passes them, mostly one. Neighbors may be at different sites.
        max_batch_size: maximum number of requests in a batch.
        quality: a number of the user's choice, such as accuracy; larger is better.
    """

    name: str = _text()
    shards: Sequence[Shard] = _records(Shard)
    max_batch_size: int = attrs.field(default=32, validator=field_check(check_count))
    quality: float = attrs.field(default=1.0, validator=_number("a finite number", lambda it: abs(it) < math.inf))


@attrs.frozen(kw_only=True)
class Model:
    """A model in one or several variants; every variant can serve every request.

    Attributes:
        name: name of the model.
        variants: variants to choose from.
        request_bytes: bytes that a user sends for each request.
        response_bytes: bytes of a response.
    """

    name: str = _text()
    variants: Sequence[Variant] = _records(Variant)
    request_bytes: float = _amount()
    response_bytes: float = _amount()


@attrs.frozen(kw_only=True)
class Scenario:
    """Conditions that a plan must hold under, such as an outage of 5G.

    Attributes:
        name: name of the scenario.
        access: access profiles that differ in this scenario, by name of the cluster.
        rate_factor: multiplies all rates.
    """

    name: str = _text()
    access: Mapping[str, str] = attrs.field(
        default=_NO_ENTRIES,
        validator=field_check(check_instance, Mapping, "a mapping of clusters to profiles"),
    )
    rate_factor: float = _amount(1.0)


@attrs.frozen(kw_only=True)
class Problem:
    """Input of `plan`: where models can run, and for which users.

    Attributes:
        clusters: the users.
        sites: where models can run.
        models: the models that the users need.
        access: the access profiles.
        service_classes: the promises.
        links: links by name of the cluster, then of the site; users cannot reach a site without a link.
        site_links: links between sites, for shards; one direction is enough, because both are the same.
        scenarios: scenarios in which the plan must hold, each in every hour; the first one sets the shares by site.
        failures: groups of sites that may be lost together, or `ANY_SITE`. The promise must hold after each loss.
    """

    clusters: Sequence[UserCluster] = _records(UserCluster)
    sites: Sequence[Site] = _records(Site)
    models: Sequence[Model] = _records(Model)
    access: Sequence[AccessProfile] = _records(AccessProfile)
    service_classes: Sequence[ServiceClass] = _records(ServiceClass)
    links: Mapping[str, Mapping[str, Link]]
    site_links: Mapping[str, Mapping[str, Link]] = _NO_ENTRIES
    scenarios: Sequence[Scenario] = _records(Scenario, default=(Scenario(name="normal"),))
    failures: str | tuple[tuple[str, ...], ...] = attrs.field(default=(), converter=_as_failures)

    def __attrs_post_init__(self) -> None:
        _check_names(self)
        _check_clusters(self)
        _check_scenarios(self)
        _check_links("links", self.links, {it.name for it in self.clusters}, self)
        _check_links("site_links", self.site_links, {it.name for it in self.sites}, self)

    @property
    def hours(self) -> int:
        """How many hours the rates describe."""
        return max(len(cluster.rates) for cluster in self.clusters)

    @property
    def failure_groups(self) -> tuple[tuple[str, ...], ...]:
        """The groups of sites that may be lost together."""
        return tuple((site.name,) for site in self.sites) if isinstance(self.failures, str) else self.failures

    def promise_of(self, cluster: UserCluster) -> ServiceClass:
        """Return the service class of a cluster."""
        return next(it for it in self.service_classes if it.name == cluster.service_class)

    def access_of(self, cluster: UserCluster, scenario: int) -> AccessProfile:
        """Return the access profile of a cluster; ``scenario`` is the index of the scenario."""
        name = self.scenarios[scenario].access.get(cluster.name, cluster.access)
        return next(it for it in self.access if it.name == name)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Read a problem.

        Args:
            source: a JSON text, the path of a JSON file, or the result of `json.loads`.

        Raises:
            OSError: the file cannot be read.
            TypeError, ValueError: the source is not a valid problem; the message has the path to the mistake.
        """
        stored: Any = source
        if isinstance(source, os.PathLike) or (isinstance(source, str) and not source.lstrip().startswith(("{", "["))):
            stored = Path(source).read_bytes()
        if isinstance(stored, str | bytes):
            try:
                stored = json.loads(stored)
            except ValueError as error:
                raise ValueError(f"source: expected JSON, got a mistake in it: {error}") from error
        return read_record(cls, stored, "")

    def to_json(self) -> str:
        """Return the problem as a JSON text, which `from_json` reads."""
        return json.dumps(write_record(self), indent=1)

    def __repr__(self) -> str:
        counts = (
            f"{len(self.clusters)} clusters",
            f"{len(self.sites)} sites",
            f"{sum(len(model.variants) for model in self.models)} variants",
            f"{self.hours} hours",
        )
        return f"<Problem: {', '.join(counts)}>"


def _check_names(problem: Problem) -> None:
    for name in ("clusters", "sites", "models", "access", "service_classes", "scenarios"):
        check_unique(name, [it.name for it in getattr(problem, name)])
    for at, site in enumerate(problem.sites):
        check_unique(f"sites[{at}].devices", [group.kind for group in site.devices])
    for at, model in enumerate(problem.models):
        check_unique(f"models[{at}].variants", [variant.name for variant in model.variants])


def _check_clusters(problem: Problem) -> None:
    profiles, models = {it.name for it in problem.access}, {it.name for it in problem.models}
    classes = {it.name for it in problem.service_classes}
    regions = {region for site in problem.sites for region in site.regions}
    for at, cluster in enumerate(problem.clusters):
        _check_known(f"clusters[{at}].access", cluster.access, profiles, "access profile")
        _check_known(f"clusters[{at}].service_class", cluster.service_class, classes, "service class")
        _check_known(f"clusters[{at}].model", cluster.model, models, "model")
        if cluster.residency is not None:
            _check_known(f"clusters[{at}].residency", cluster.residency, regions, "region of a site")
        if len(cluster.rates) not in {1, problem.hours}:
            expectation = f"1 or {problem.hours} rates, as other clusters have"
            raise ValueError(expected(f"clusters[{at}].rates", expectation, cluster.rates))


def _check_scenarios(problem: Problem) -> None:
    clusters, profiles = {it.name for it in problem.clusters}, {it.name for it in problem.access}
    for at, scenario in enumerate(problem.scenarios):
        for name, profile in scenario.access.items():
            _check_known(f"scenarios[{at}].access", name, clusters, "cluster")
            _check_known(f"scenarios[{at}].access[{name!r}]", profile, profiles, "access profile")
    if isinstance(problem.failures, str):
        check_choice("failures", problem.failures, (ANY_SITE,))
    else:
        check_instance("failures", problem.failures, tuple, f"groups of sites, or {ANY_SITE!r}")
        for at, group in enumerate(problem.failures):
            check_instance(f"failures[{at}]", group, lambda it: isinstance(it, tuple) and bool(it), "names of sites")
            for name in group:
                _check_known(f"failures[{at}]", name, {it.name for it in problem.sites}, "site")


def _check_links(path: str, links: Mapping[str, Mapping[str, Link]], starts: set[str], problem: Problem) -> None:
    sites = {it.name for it in problem.sites}
    check_instance(path, links, Mapping, "a mapping of names to Links by site")
    for start, row in links.items():
        _check_known(path, start, starts, "name")
        check_instance(f"{path}[{start!r}]", row, Mapping, "Links by site")
        for end, link in row.items():
            _check_known(f"{path}[{start!r}]", end, sites, "site")
            check_instance(f"{path}[{start!r}][{end!r}]", link, Link, "a Link")


def check_unique(name: str, names: Sequence[str]) -> None:
    """Check that no name occurs twice.

    Raises:
        ValueError: a name occurs twice.
    """
    if repeated := [one for one, count in Counter(names).items() if count > 1]:
        raise ValueError(expected(name, "names that differ", repeated[0]))


def _check_known(path: str, name: object, known: Iterable[str], kind: str) -> None:
    if not isinstance(name, str) or name not in known:
        raise ValueError(expected(path, f"a known {kind}, one of {sorted(known)[:10]}", name))
