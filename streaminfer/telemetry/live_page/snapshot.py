"""Snapshot of services for the live page: the panels of each service, and their numbers."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer.protocols import name_of
from streaminfer.telemetry.live_page.panels import LIVE, PANELS, READERS, Numbers, slo_numbers, table
from streaminfer.telemetry.live_page.recent_tail import RecentTail
from streaminfer.telemetry.services import Found, walk
from streaminfer.telemetry.statistics import PARTS
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["ServiceReader"]

_LABELS_PER_PANEL = 12
_LABELS_OF_TABLE = 200
_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_WINDOW_S = 10.0
_FULL_READ_NS = 2_000_000_000
"""Period in which the reader searches once for layers, and reads figures that change slowly or are in no chart."""
_CHART_READ_NS = 500_000_000
"""Period, a part of `_FULL_READ_NS`, in which charts other than `LIVE` are read once: statistics of layers take most of
the CPU of an update."""
_CHARTS, _ALL = 1, 2
"""Depths of a read: at 0 it reads the panels of `LIVE` only."""
_PANEL_ORDER = tuple(panel.id for panel in PANELS)


class ServiceReader:
    """Reads the statistics of one service: of all its layers, including those inside routers and replicas.

    Not thread-safe.

    Args:
        parts: stacks, other services, or other objects with statistics.

    Attributes:
        charts_read_ns: monotonic nanoseconds of the last read of charts other than `LIVE`; -1 before the first.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._entries: list[Found] = []
        self._live_entries: list[Found] = []
        self.charts_read_ns = -1
        self._last_panels: dict[str, dict[str, Any]] = {}
        self._tails: WeakKeyDictionary[Telemetry, list[RecentTail]] = WeakKeyDictionary()
        self._failures = ErrorLog("streaminfer.live_page")

    def read(self, now_ns: int) -> dict[str, dict[str, Any]]:
        """Return numbers by panel and label, in the order of `PANELS`, without empty panels.

        Args:
            now_ns: monotonic nanoseconds, never less than in the last call.
        """
        # the first update in a period reads, so that updates at intervals of a period all do, late ones included
        periods_ns = (_CHART_READ_NS, _FULL_READ_NS)
        depth = sum(now_ns // period_ns != self.charts_read_ns // period_ns for period_ns in periods_ns)
        if depth == _ALL:
            visited: set[int] = set()
            entries = itertools.chain.from_iterable(walk(part, visited) for part in self._parts)
            self._entries = [it for it in entries if not it.node.stack_state]  # a stack's statistics are its layers'
            self._last_panels.clear()
        panels: dict[str, dict[str, Any]] = {}
        reading = self._entries if depth >= _CHARTS else self._live_entries
        panel_names = [self._read_part(entry, panels, now_ns, depth) for entry in reading]
        if depth >= _CHARTS:
            self.charts_read_ns = now_ns
            # parts without a chart are read again only after the next search for layers
            self._entries = [entry for entry, names in zip(reading, panel_names, strict=True) if names - {"other"}]
            self._live_entries = [entry for entry, names in zip(reading, panel_names, strict=True) if names & LIVE]
        self._last_panels |= {panel: _bounded(panel, numbers) for panel, numbers in panels.items()}
        return {panel: self._last_panels[panel] for panel in _PANEL_ORDER if panel in self._last_panels}

    def _read_part(self, entry: Found, panels: dict[str, dict[str, Any]], now_ns: int, depth: int) -> set[str]:
        """Add the numbers of a part to the panels, and return the ids of these panels."""
        names = set()
        try:
            for panel, numbers in self._numbers(entry, now_ns, depth):
                if depth >= _CHARTS or panel in LIVE:
                    names.add(panel)
                    _add(panels, panel, numbers, entry.path)
        except LISTENER_ERRORS as error:  # a broken layer of a user must not blank the page
            name = name_of(entry.part)
            self._failures.report(f"the live page: statistics() of {name}", error)
            if depth == _ALL:
                _add(panels, "other", {f"{name}: statistics": "not readable"}, "")
            names.clear()
        return names

    def _numbers(self, entry: Found, now_ns: int, depth: int) -> Iterator[Numbers]:
        if isinstance(entry.part, Telemetry):
            yield from self._telemetry_numbers(entry.part, now_ns, depth)
            return
        statistics = entry.node.statistics()
        read = READERS.get(type(statistics).__name__)
        if read is not None:
            yield from read(statistics)
        if depth == _ALL:
            yield "other", table(name_of(entry.part), statistics)

    def _telemetry_numbers(self, telemetry: Telemetry, now_ns: int, depth: int) -> Iterator[Numbers]:
        """Yield the numbers of a telemetry, without the five histogram copies of its statistics."""
        histograms = telemetry._histograms
        recent = self._tails.get(telemetry)
        if recent is None:
            recent = self._tails[telemetry] = [RecentTail(it, _WINDOW_S) for it in histograms]
        in_flight, outcomes = telemetry._counts(*telemetry._recorder.responses())
        yield "queue", {"in flight": in_flight}
        yield "requests", outcomes
        if depth >= _CHARTS:
            seconds = recent[0].quantiles([*_SHARES.values()], now_ns)
            yield "tail", dict(zip(_SHARES, seconds, strict=True))
        if depth == _ALL:
            seconds = [tail.quantiles([0.99], now_ns)[0] for tail in recent[1:]]
            parts = zip(PARTS, seconds, histograms[1:], strict=True)
            yield "parts", {part: p99 for part, p99, histogram in parts if histogram.count}
            if telemetry.slo is not None:
                yield from slo_numbers(telemetry.slo.statistics())


def _add(panels: dict[str, dict[str, Any]], panel: str, numbers: dict[str, Any], path: str) -> None:
    """Add the numbers of a part to a panel, with its path before each label."""
    if path:
        numbers = {f"{path}: {label}": value for label, value in numbers.items()}
    if not numbers:
        return
    existing = panels.setdefault(panel, numbers)
    if existing is not numbers:
        for label, value in numbers.items():
            existing[label] = _sum(existing[label], value) if label in existing else value


def _sum(one: Any, other: Any) -> Any:
    """Combine two values of the same label: add counters; otherwise show the later value."""
    return one + other if isinstance(one, int) and isinstance(other, int) else other


def _bounded(panel: str, numbers: dict[str, Any]) -> dict[str, Any]:
    max_labels = _LABELS_OF_TABLE if panel == "other" else _LABELS_PER_PANEL
    return numbers if len(numbers) <= max_labels else dict(itertools.islice(numbers.items(), max_labels))
