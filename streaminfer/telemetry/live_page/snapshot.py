"""Snapshot of services for the live page: which panels each has, and the numbers in them."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from streaminfer.protocols import Node, adapt, is_service, name_of
from streaminfer.telemetry.live_page.panels import PANELS, SLOW, Point, is_drawn, points, table
from streaminfer.telemetry.live_page.recent_tail import RecentTail
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["ServiceReader", "name_services"]

_LABELS_PER_PANEL = 12
_LABELS_OF_TABLE = 200
_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_PARTS = ("queue", "assembly", "inference", "delivery")
_WINDOW_S = 10.0
_WHOLE_NS = 1_000_000_000
"""How often layers are looked for, and figures read that are in no chart or change slowly."""
_logger = logging.getLogger("streaminfer.live_page")


class _Found(NamedTuple):
    thing: Any
    node: Node
    name: str
    path: str


class ServiceReader:
    """Reads one service: the statistics of all its layers, and of what is inside routers and replicas.

    Not thread-safe.

    Args:
        service: a stack, any other service, or a part with statistics of its own.
    """

    def __init__(self, service: Any) -> None:
        self.service = service
        self._found: list[_Found] = []
        self._read_ns: int | None = None
        self._drawn: set[int] = set()
        self._slow: dict[str, dict[str, Any]] = {}
        self._tails: WeakKeyDictionary[Telemetry, list[RecentTail]] = WeakKeyDictionary()
        self._failed: set[str] = set()

    @property
    def name(self) -> str:
        """The name of its telemetry, else that of the service."""
        telemetries = (it.thing for it in _walk(self.service, set()) if isinstance(it.thing, Telemetry))
        return next((it.name for it in telemetries if it.name), "") or name_of(self.service)

    def read(self, now_ns: int) -> dict[str, dict[str, Any]]:
        """Return numbers by panel and label, in the order of `PANELS`; panels without any are left out.

        Args:
            now_ns: monotonic; never less than at the last call.
        """
        whole = self._read_ns is None or now_ns - self._read_ns >= _WHOLE_NS
        if whole:
            self._read_ns = now_ns
            self._found = list(_walk(self.service, set()))
            if not is_service(self.service):  # a stack's own statistics are those of its layers
                node = adapt(self.service)
                self._found.insert(0, _Found(self.service, node, name_of(self.service), ""))
            self._drawn.clear()
        panels: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for found in self._found:
            prefix = f"{found.path}: " if found.path else ""
            try:
                for panel, label, value in self._points(found, now_ns, whole):
                    numbers, name = panels[panel], prefix + label
                    numbers[name] = _sum(numbers[name], value) if name in numbers else value
            except Exception:  # one broken layer of a user's must not blank the page
                if found.name not in self._failed:
                    self._failed.add(found.name)
                    _logger.exception("the live page cannot read the statistics of %s", found.name)
                panels["other"][f"{found.name}: statistics"] = "not readable"
        if whole:
            self._slow = {name: numbers for name, numbers in panels.items() if name in SLOW}
        panels |= self._slow
        return {panel.id: _bounded(panel.kind, panels[panel.id]) for panel in PANELS if panel.id in panels}

    def _points(self, found: _Found, now_ns: int, whole: bool) -> Iterator[Point]:
        if isinstance(found.thing, Telemetry):
            yield from self._telemetry_points(found.thing, now_ns, whole)
        elif whole:
            statistics = found.node.statistics()
            if is_drawn(statistics):
                self._drawn.add(id(found.thing))
            yield from points(statistics)
            yield from table(found.name, statistics)
        elif id(found.thing) in self._drawn:
            yield from points(found.node.statistics())

    def _telemetry_points(self, telemetry: Telemetry, now_ns: int, whole: bool) -> Iterator[Point]:
        """The same as of its statistics, without copies of five histograms."""
        histograms = telemetry._histograms
        tails = self._tails.get(telemetry)
        if tails is None:
            tails = self._tails[telemetry] = [RecentTail(it, _WINDOW_S) for it in histograms]
        in_flight, outcomes = telemetry._counts(telemetry._recorder.degraded, histograms[0].count)
        yield "queue", "in flight", in_flight
        yield from (("requests", outcome, count) for outcome, count in outcomes.items())
        seconds = tails[0].quantiles([*_SHARES.values()], now_ns)
        yield from (("tail", label, value) for label, value in zip(_SHARES, seconds, strict=True))
        if whole:
            for part, tail, histogram in zip(_PARTS, tails[1:], histograms[1:], strict=True):
                if histogram.count:
                    yield "parts", part, tail.quantiles([0.99], now_ns)[0]
            if telemetry.slo is not None:
                yield from points(telemetry.slo.statistics())


def name_services(readers: list[ServiceReader]) -> list[str]:
    """Return a name for each; a second one of a name gets ``#2``."""
    names: list[str] = []
    for reader in readers:
        name, number = reader.name, 1
        while (unique := name if number == 1 else f"{name} #{number}") in names:
            number += 1
        names.append(unique)
    return names


def _walk(thing: Any, seen: set[int], path: str = "") -> Iterator[_Found]:
    """Each node inside, once; the path has the labels of routes and replicas, not those of layers."""
    children: Mapping[str, Any] = adapt(thing).children
    for label, child in children.items():
        if id(child) in seen:
            continue
        seen.add(id(child))
        is_layer = label in {"inner", "layer"} or label.split("#")[0] == type(child).__name__
        inside = path if is_layer else f"{path}/{label}" if path else label
        node = adapt(child)
        yield _Found(child, node, node.name or type(child).__name__, inside)
        yield from _walk(child, seen, inside)


def _sum(one: Any, other: Any) -> Any:
    """Counters of one label, of layers that are there twice, are added up; of other figures the latter one is shown."""
    return one + other if isinstance(one, int) and isinstance(other, int) else other


def _bounded(kind: str, numbers: dict[str, Any]) -> dict[str, Any]:
    most = _LABELS_OF_TABLE if kind == "table" else _LABELS_PER_PANEL
    return numbers if len(numbers) <= most else dict(itertools.islice(numbers.items(), most))
