"""Panels of the live page: which figures of which statistics each one shows.

Statistics are recognized by the name of their class, so that this package imports none of the others, and what is not
known here still shows its numbers in the last panel. Only numbers, and names that the operator gave to routes, layers
and objectives, get here: no tenant, stream, key or payload does.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import attrs

from streaminfer._internal.units import format_duration

__all__ = ["PANELS", "SLOW", "Panel", "Point", "reader_of", "slo_points", "table"]

Point = tuple[str, str, Any]
"""The panel, the label in it, and a number, a pair of counters, or text."""


class Panel(NamedTuple):
    """One chart or table of a service.

    Attributes:
        id: of the panel.
        title: its heading.
        unit: ``"s"``, ``"share"``, or text behind the number.
        kind: ``"gauge"``: numbers as they are; ``"counter"``: drawn as a rate; ``"ratio"``: two counters, drawn as the
            rate of the first over that of the second; ``"table"``: not drawn.
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
    Panel("other", "Other figures", "", "table"),
)
SLOW = frozenset({"parts", "budget", "burn", "age", "cost", "bill", "other"})
"""Panels that are read once a second."""


def reader_of(statistics: Any) -> Callable[[Any], Iterator[Point]] | None:
    """Return the function that yields what charts show of such statistics; ``None``: they show nothing.

    Args:
        statistics: a snapshot of any class.
    """
    return _READERS.get(type(statistics).__name__)


def table(name: str, statistics: Any) -> Iterator[Point]:
    """Yield every field that is a number, for the last panel.

    Mappings are left out, since their keys may be tenants or streams.

    Args:
        name: of the node.
        statistics: a snapshot of any class.
    """
    if not attrs.has(type(statistics)):
        return
    texts = _TEXTS.get(type(statistics).__name__, ())
    for field in attrs.fields(type(statistics)):
        value = getattr(statistics, field.name)
        if isinstance(value, (bool, int, float)) or field.name in texts:
            yield "other", f"{name}: {field.name.replace('_', ' ')}", value


def slo_points(it: Any) -> Iterator[Point]:
    """Yield what charts show of an objective's statistics."""
    yield "budget", it.name, it.budget_remaining
    for seconds, rate in list(it.burn_rates.items())[::3]:  # neighbors say nearly the same
        yield "burn", f"{it.name}, {format_duration(seconds)}", rate


def _batcher(it: Any) -> Iterator[Point]:
    yield "queue", "queued", it.queued
    yield "queue", "running", it.running
    yield from (("batches", reason, count) for reason, count in it.released.items())
    rows = sum(size * count for size, count in it.batch_sizes.items())
    yield "batch_size", "mean", (rows, it.batches)
    yield from _drops(it.rejected)
    yield from _drops({"deadline_exceeded": it.deadline_exceeded, "failed": it.failed, "cancelled": it.cancelled})
    if it.device is not None:
        yield from (("device", f"{it.device.name}, {model}", had.busy_s) for model, had in it.device.models.items())


def _limit(it: Any) -> Iterator[Point]:
    yield "queue", "limit", it.allowed
    yield "queue", "queued for a permit", it.queued
    yield from _drops({"limit": it.rejected, "infeasible (limit)": it.infeasible})


def _breaker(it: Any) -> Iterator[Point]:
    return _drops({"circuit_open": it.rejected})


def _router(it: Any) -> Iterator[Point]:
    for route in it.routes:
        yield "routes", route.name, 0.0 if route.closed else route.share
        yield "route_requests", route.name, route.succeeded


def _cache(it: Any) -> Iterator[Point]:
    yield from (("cache", label.replace("_", " "), getattr(it, label)) for label in _LOOKUPS)


def _session(it: Any) -> Iterator[Point]:
    yield from (("streams", label, getattr(it, field)) for field, label in _STREAMS.items())
    yield from (("frames", reason, count) for reason, count in it.dropped.items())
    yield "frames", "delivered", it.delivered
    yield "frames", "failed", it.failed
    if it.ages.count:
        yield "age", "p99", it.ages.quantile(0.99)


def _stateful(it: Any) -> Iterator[Point]:
    yield "streams", "with state", it.streams


def _cost(it: Any) -> Iterator[Point]:
    yield "cost", f"all, {it.currency}", it.per_1000_on_time
    yield from (("cost", f"{route}, {it.currency}", row.per_1000_on_time) for route, row in it.routes.items())
    if it.bill:
        yield from (("bill", part, getattr(it, part) / it.bill) for part in ("busy", "padding", "idle"))


def _drops(counts: Mapping[str, int]) -> Iterator[Point]:
    return (("drops", reason, count) for reason, count in counts.items() if count)


_LOOKUPS = ("hits", "misses", "stale_hits", "negative_hits")
_STREAMS = {"open_streams": "open", "waiting": "frames waiting", "in_flight": "frames in flight"}
_TEXTS = {"BreakerStatistics": ("state", "mode")}
_READERS: dict[str, Callable[[Any], Iterator[Point]]] = {
    "SloStatistics": slo_points,
    "BatcherStatistics": _batcher,
    "LimitStatistics": _limit,
    "BreakerStatistics": _breaker,
    "RouterStatistics": _router,
    "CacheStatistics": _cache,
    "StreamSessionStatistics": _session,
    "StatefulStatistics": _stateful,
    "CostStatistics": _cost,
}
