"""Panels of the live page, and the figures of the statistics that each panel shows.

The module recognizes statistics by the name of their class, so this package imports no other. The last panel shows the
numbers of unknown statistics. Only numbers, and the operator's names of routes, layers and objectives, get here: no
tenant, stream, key or payload.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import attrs

from streaminfer._internal.units import format_duration

__all__ = ["LIVE", "PANELS", "READERS", "Numbers", "Panel", "slo_numbers", "table"]

Numbers = tuple[str, dict[str, Any]]
"""Id of a panel, and its values by label: numbers, pairs of counters, or texts. The receiver owns the dictionary."""


class Panel(NamedTuple):
    """One chart or table of a service.

    Attributes:
        id: identifier of the panel.
        title: heading of the panel.
        unit: ``"s"``, ``"share"``, or text after the number.
        kind: ``"gauge"``: numbers drawn directly; ``"counter"``: drawn as a rate; ``"ratio"``: two counters, drawn as
            the rate of the first divided by that of the second; ``"table"``: not drawn.
    """

    id: str
    title: str
    unit: str
    kind: Literal["gauge", "counter", "ratio", "table"]


PANELS = (
    Panel("tail", "Latency, last 10 s", "s", "gauge"),
    Panel("requests", "Requests by outcome", "/s", "counter"),
    Panel("parts", "Latency by part, p99 of the last 10 s", "s", "gauge"),
    Panel("queue", "Queued and running", "", "gauge"),
    Panel("drops", "Rejected and lost, by reason", "/s", "counter"),
    Panel("batches", "Batches by reason", "/s", "counter"),
    Panel("batch_size", "Mean batch size", "", "ratio"),
    Panel("device", "Shared device: time busy with each model", "share", "counter"),
    Panel("routes", "Share of the traffic by route", "share", "gauge"),
    Panel("route_requests", "Responses by route", "/s", "counter"),
    Panel("budget", "Error budget left", "share", "gauge"),
    Panel("burn", "Burn rate", "", "gauge"),
    Panel("cache", "Cache lookups", "/s", "counter"),
    Panel("streams", "Streams", "", "gauge"),
    Panel("frames", "Frames of streams by outcome", "/s", "counter"),
    Panel("age", "Age of results of streams, p99 since the start", "s", "gauge"),
    Panel("cost", "Cost of 1,000 responses on time", "", "gauge"),
    Panel("bill", "Shares of the bill", "share", "gauge"),
    Panel("saved", "Saved by the cache", "", "gauge"),
    Panel("other", "Other figures", "", "table"),
)
LIVE = frozenset({"queue", "streams"})
"""Panels that are read at each update. The others are read at most twice a second; rates are drawn over a second."""


def table(name: str, statistics: Any) -> dict[str, Any]:
    """Return the fields of statistics that are numbers, for the last panel.

    Mappings are left out, because their keys may be tenants or streams.

    Args:
        name: name of the node.
        statistics: a snapshot of any class.
    """
    kind = statistics.__class__
    texts = _TEXTS.get(kind.__name__, ())
    values = {field.name: getattr(statistics, field.name) for field in attrs.fields(kind)} if attrs.has(kind) else {}
    return {
        f"{name}: {field.replace('_', ' ')}": value
        for field, value in values.items()
        if field in texts or isinstance(value, (bool, int, float))
    }


def slo_numbers(it: Any) -> Iterator[Numbers]:
    """Yield the chart values of an objective's statistics."""
    yield "budget", {it.name: it.budget_remaining}
    rates = list(it.burn_rates.items())[::3]  # neighboring windows have nearly the same rate
    yield "burn", {f"{it.name}, {format_duration(seconds)}": rate for seconds, rate in rates}


def _batcher(it: Any) -> Iterator[Numbers]:
    yield "queue", {"queued": it.queued, "running": it.running}
    yield "batches", dict(it.released)
    yield "batch_size", {"mean": (sum(size * count for size, count in it.batch_sizes.items()), it.batches)}
    incomplete = {"deadline_exceeded": it.deadline_exceeded, "failed": it.failed, "cancelled": it.cancelled}
    yield from _drops({**it.rejected, **incomplete})
    if it.device is not None:
        yield "device", {f"{it.device.name}, {model}": usage.busy_s for model, usage in it.device.models.items()}


def _limit(it: Any) -> Iterator[Numbers]:
    yield "queue", {"limit": it.allowed, "queued for a permit": it.queued}
    yield from _drops({"limit": it.rejected, "infeasible (limit)": it.infeasible})


def _router(it: Any) -> Iterator[Numbers]:
    yield "routes", {route.name: 0.0 if route.closed else route.share for route in it.routes}
    yield "route_requests", {route.name: route.succeeded for route in it.routes}


def _cache(it: Any) -> Iterator[Numbers]:
    lookups = {"hits": it.hits, "misses": it.misses, "stale hits": it.stale_hits, "negative hits": it.negative_hits}
    yield "cache", lookups


def _session(it: Any) -> Iterator[Numbers]:
    yield "streams", {"open": it.open_streams, "frames waiting": it.waiting, "frames in flight": it.in_flight}
    yield "frames", {**it.dropped, "delivered": it.delivered, "failed": it.failed}
    if it.ages.count:
        yield "age", {"p99": it.ages.quantile(0.99)}


def _cost(it: Any) -> Iterator[Numbers]:
    routes = {f"{route}, {it.currency}": row.per_1000_on_time for route, row in it.routes.items()}
    yield "cost", {f"all, {it.currency}": it.per_1000_on_time, **routes}
    if it.bill:
        yield "bill", {part: getattr(it, part) / it.bill for part in ("busy", "padding", "idle")}
    if it.total.cached:
        yield "saved", {f"all, {it.currency}": it.saved_by_cache}


def _drops(counts: Mapping[str, int]) -> Iterator[Numbers]:
    yield "drops", {reason: count for reason, count in counts.items() if count}


_TEXTS = {"BreakerStatistics": ("state", "mode")}
READERS: dict[str, Callable[[Any], Iterable[Numbers]]] = {
    "SloStatistics": slo_numbers,
    "BatcherStatistics": _batcher,
    "LimitStatistics": _limit,
    "BreakerStatistics": lambda it: _drops({"circuit_open": it.rejected}),
    "RouterStatistics": _router,
    "CacheStatistics": _cache,
    "StreamSessionStatistics": _session,
    "StatefulStatistics": lambda it: [("streams", {"with state": it.streams})],
    "CostStatistics": _cost,
}
"""Functions that yield the chart values of statistics, by class name; other statistics have no chart."""
