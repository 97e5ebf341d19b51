"""Measurements of running services for the next plan: round-trip times, service times and rates."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.validation import check_count, check_duration, check_instance, expected
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement.network.promised_rtt import CONFIDENCE
from streaminfer.placement.network.rtt_samples import RttSamples
from streaminfer.placement.problem import Problem, Variant
from streaminfer.request import Request, Response
from streaminfer.sync_layer import SyncLayer

__all__ = ["RttMeter", "with_measurements"]


class RttMeter(SyncLayer):
    """Layer that measures the round-trip time to the service of a site.

    The round-trip time is the duration of a call minus the time that the site reports in ``Response.timings`` for
    queue, assembly and inference. Errors are not measured. Put the layer around the service of each replica, in the
    process on the users' side::

        meter = RttMeter("Lyon", "Paris")
        Replica("Paris 1", si.Stack(meter, service_in_paris), zone="Paris")

    Args:
        cluster: name of the users' `UserCluster`.
        site: name of the `Site`.
        served_s: returns the seconds that the site took for a response, such as from a header; an exception from it is
            logged once. ``None``: the layer uses the response's timings and ignores responses without them.
        keep: number of the latest measurements to keep.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Not thread-safe: for one event loop.
    """

    fingerprint = ""  # it changes no response

    def __init__(
        self, cluster: str, site: str, *, served_s: Callable[[Response], float] | None = None, keep: int = 4096
    ) -> None:
        for name, value in (("cluster", cluster), ("site", site)):
            check_instance(name, value, str, "a name")
        check_instance("served_s", served_s, lambda it: it is None or callable(it), "a function or None")
        self.cluster = cluster
        self.site = site
        self.name = f"{cluster} to {site}"
        self._served_s = served_s
        self._errors = ErrorLog("streaminfer.placement")
        self._rtt_s: deque[float] = deque(maxlen=check_count("keep", keep, at_least=2))

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - as a layer is called
        """Return when the request was sent."""
        return now_ns

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Keep the round-trip time of a response."""
        if isinstance(outcome, BaseException):
            return
        if self._served_s is not None:
            try:
                served_s = check_duration("served_s", self._served_s(outcome))
            except Exception as error:  # noqa: BLE001 - of the caller's function; the response is as good as before
                self._errors.report(f"served_s of the meter {self.name!r}", error)
                return
        elif (timings := outcome.timings) is not None:
            served_s = timings.queued_s + timings.assembled_s + timings.inferred_s
        else:
            return
        self._rtt_s.append(max((now_ns - token) / 1e9 - served_s, 0.0))

    @property
    def rtt_s(self) -> list[float]:
        """The latest measurements in their order, in seconds."""
        return list(self._rtt_s)

    @staticmethod
    def samples(meters: Iterable["RttMeter"]) -> RttSamples:
        """Return the measurements of several meters, combined by cluster and site.

        Raises:
            TypeError: not a list of meters.
            ValueError: no cluster and site has at least two measurements.
        """
        check_instance("meters", meters, Iterable, "a list of RttMeters")
        return RttSamples.from_rows((meter.cluster, meter.site, rtt_s) for meter in meters for rtt_s in meter.rtt_s)

    def __repr__(self) -> str:
        return f"<RttMeter: {self.name}, {len(self._rtt_s)} measurements>"


def with_measurements(
    problem: Problem,
    *,
    rtt: RttSamples | None = None,
    confidence: float = CONFIDENCE,
    service_times: Mapping[tuple[str, str, str], Any] | None = None,
    rates: Mapping[str, float | Iterable[float]] | None = None,
) -> Problem:
    """Return the problem with measured values, for the next plan.

    Args:
        problem: the previous problem.
        rtt: measured round-trip times. A measured link gets the times that can be promised; other links stay.
        confidence: as for `RttSamples.links`.
        service_times: (model, variant, kind of device) → an `AdaptiveBatcher` that has learned, or a `ServiceTime`. For
            a variant of several shards, a sequence with one of these for each shard in order; ``None`` leaves a shard
            unchanged. Beyond the largest batch that a batcher has run, the times of the previous problem follow, scaled
            to continue the learned ones.
        rates: name of a cluster → requests per second, one number or one for each hour.

    Raises:
        TypeError, ValueError: a name that the problem does not know, or a value of the wrong type.
        RuntimeError: a batcher has learned nothing yet.
    """
    _check_types(problem, rtt, service_times, rates)
    changes: dict[str, Any] = {}
    if rtt is not None:
        links = {cluster: dict(row) for cluster, row in problem.links.items()}
        for cluster, row in rtt.links(confidence=confidence).items():
            cluster_links = links.setdefault(cluster, {})
            for site, link in row.items():
                cluster_links[site] = attrs.evolve(cluster_links[site], rtt=link.rtt) if site in cluster_links else link
        changes["links"] = links
    if service_times is not None:
        variants = {(model.name, variant.name): variant for model in problem.models for variant in model.variants}
        keys = {(*names, kind) for names, it in variants.items() for shard in it.shards for kind in shard.service_time}
        for key, learned in service_times.items():
            if key not in keys:
                raise ValueError(expected("service_times", "model, variant and device of the problem", key))
            variants[key[:2]] = _with_learned_times(variants[key[:2]], key, learned)
        changes["models"] = tuple(
            attrs.evolve(model, variants=tuple(variants[model.name, it.name] for it in model.variants))
            for model in problem.models
        )
    if rates is not None:
        names = {cluster.name for cluster in problem.clusters}
        for name in rates:
            if name not in names:
                raise ValueError(expected("rates", "names of clusters", name))
        changes["clusters"] = tuple(attrs.evolve(it, rates=rates.get(it.name, it.rates)) for it in problem.clusters)
    return attrs.evolve(problem, **changes)


def _check_types(problem: Any, rtt: Any, service_times: Any, rates: Any) -> None:
    check_instance("problem", problem, Problem, "a Problem")
    check_instance("rtt", rtt, RttSamples | None, "RttSamples or None")
    for name, table in (("service_times", service_times), ("rates", rates)):
        check_instance(name, table, Mapping | None, "a mapping or None")


_Key = tuple[str, str, str]  # model, variant and kind of device


def _with_learned_times(variant: Variant, key: _Key, service_times: Any) -> Variant:
    by_shard = service_times if isinstance(service_times, list | tuple) else [service_times]
    shards = list(variant.shards)
    if len(by_shard) != len(shards):
        expectation = (
            f"a list with one for each of the {len(shards)} shards" if len(shards) > 1 else "one, for the only shard"
        )
        raise ValueError(expected(f"service_times[{key}]", expectation, service_times))
    for number, (service_time, shard) in enumerate(zip(by_shard, variant.shards, strict=True)):
        if service_time is None:
            continue
        previous = shard.service_time.get(key[2])
        if previous is None:
            raise ValueError(
                expected(f"service_times[{key}][{number}]", "None, since it does not run there", service_time)
            )
        times = {**shard.service_time, key[2]: _service_time(key, service_time, previous, variant.max_batch_size)}
        shards[number] = attrs.evolve(shard, service_time=times)
    return attrs.evolve(variant, shards=tuple(shards))


def _service_time(key: _Key, source: Any, previous: ServiceTime, max_batch_size: int) -> ServiceTime:
    from streaminfer.batching.batcher import AdaptiveBatcher  # noqa: PLC0415 - loads the event loop, which plans need not

    if isinstance(source, ServiceTime):
        return source
    check_instance(f"service_times[{key}]", source, AdaptiveBatcher, "an AdaptiveBatcher")
    learned = source.service_time
    if learned is None or isinstance(learned, Mapping):
        raise ValueError(expected(f"service_times[{key}]", "a batcher that learns one service time", source))
    if not learned.known:
        raise RuntimeError(f"service_times[{key}]: the batcher has observed no batch yet; send it requests first")
    return _extended(learned.fitted(), learned.trusted or max(learned.seen()), previous, max_batch_size)


def _extended(fitted: ServiceTime, last_size: int, previous: ServiceTime, max_batch_size: int) -> ServiceTime:
    """Return the learned times up to the last size that ran, and beyond it the known times, scaled to meet them.

    A batcher assumes that larger batches are as fast and tries them. It corrects itself, but a plan must hold.
    """
    if last_size >= max_batch_size:
        return fitted
    scale = fitted.seconds(last_size) / previous.seconds(last_size)
    times = {size: fitted.seconds(size) for size in fitted.sizes if 0 < size < last_size}
    times[last_size] = fitted.seconds(last_size)
    times |= {size: scale * previous.seconds(size) for size in previous.sizes if size > last_size}
    return ServiceTime(tuple(times), tuple(times.values()), scale * previous.per_item_s)
