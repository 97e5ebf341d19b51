"""Snapshot of services for the live page: which panels each has, and the numbers in them."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from streaminfer.protocols import name_of
from streaminfer.telemetry.live_page.panels import PANELS, SLOW, Point, reader_of, slo_points, table
from streaminfer.telemetry.live_page.recent_tail import RecentTail
from streaminfer.telemetry.services import Found, walk
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["ServiceReader"]

_LABELS_PER_PANEL = 12
_LABELS_OF_TABLE = 200
_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_PARTS = ("queue", "assembly", "inference", "delivery")
_WINDOW_S = 10.0
_WHOLE_NS = 1_000_000_000
"""How often layers are looked for, and figures read that are in no chart or change slowly."""
_TAIL_NS = 500_000_000
"""How often percentiles are computed: those of ten seconds change little in less."""
_logger = logging.getLogger("streaminfer.live_page")


class ServiceReader:
    """Reads one service: the statistics of all its layers, and of what is inside routers and replicas.

    Not thread-safe.

    Args:
        parts: stacks, other services, or parts with statistics of their own.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._found: list[Found] = []
        self._read_ns: int | None = None
        self._tail_ns = 0
        self._kept: dict[str, dict[str, Any]] = {}
        self._tails: WeakKeyDictionary[Telemetry, list[RecentTail]] = WeakKeyDictionary()
        self._failed: set[str] = set()

    def read(self, now_ns: int) -> dict[str, dict[str, Any]]:
        """Return numbers by panel and label, in the order of `PANELS`; panels without any are left out.

        Args:
            now_ns: monotonic; never less than at the last call.
        """
        whole = self._read_ns is None or now_ns - self._read_ns >= _WHOLE_NS
        if whole:
            self._read_ns = now_ns
            visited: set[int] = set()
            inside = itertools.chain.from_iterable(walk(part, visited) for part in self._parts)
            self._found = [it for it in inside if not it.node.stack_state]  # a stack's statistics are its layers'
            self._kept.clear()
        tails = whole or now_ns - self._tail_ns >= _TAIL_NS
        if tails:
            self._tail_ns = now_ns
        panels: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        drawn = []
        for found in self._found:
            prefix = f"{found.path}: " if found.path else ""
            try:
                shown, is_drawn = self._points(found, now_ns, whole=whole, tails=tails)
                for panel, label, value in shown:
                    numbers, name = panels[panel], prefix + label
                    numbers[name] = _sum(numbers[name], value) if name in numbers else value
            except Exception:  # one broken layer of a user's must not blank the page
                name = name_of(found.part)
                if name not in self._failed:
                    self._failed.add(name)
                    _logger.exception("the live page cannot read the statistics of %s", name)
                if whole:
                    panels["other"][f"{name}: statistics"] = "not readable"
            else:
                if is_drawn:
                    drawn.append(found)
        self._found = drawn  # the others are not read again before layers are looked for
        latest = {panel: _bounded(panel, numbers) for panel, numbers in panels.items()}
        self._kept |= {panel: numbers for panel, numbers in latest.items() if panel in SLOW or panel == "tail"}
        latest |= self._kept
        return {panel.id: latest[panel.id] for panel in PANELS if panel.id in latest}

    def _points(self, found: Found, now_ns: int, *, whole: bool, tails: bool) -> tuple[Iterable[Point], bool]:
        """Return what a part shows now, and whether some of it is drawn."""
        if isinstance(found.part, Telemetry):
            return self._telemetry_points(found.part, now_ns, whole=whole, tails=tails), True
        statistics = found.node.statistics()
        read = reader_of(statistics)
        shown = () if read is None else read(statistics)
        if whole:
            shown = itertools.chain(shown, table(name_of(found.part), statistics))
        return shown, read is not None

    def _telemetry_points(self, telemetry: Telemetry, now_ns: int, *, whole: bool, tails: bool) -> Iterator[Point]:
        """The same as of its statistics, without copies of five histograms."""
        histograms = telemetry._histograms
        recent = self._tails.get(telemetry)
        if recent is None:
            recent = self._tails[telemetry] = [RecentTail(it, _WINDOW_S) for it in histograms]
        in_flight, outcomes = telemetry._counts(telemetry._recorder.degraded, histograms[0].count)
        yield "queue", "in flight", in_flight
        yield from (("requests", outcome, count) for outcome, count in outcomes.items())
        if tails:
            seconds = recent[0].quantiles([*_SHARES.values()], now_ns)
            yield from (("tail", label, value) for label, value in zip(_SHARES, seconds, strict=True))
        if whole:
            for part, tail, histogram in zip(_PARTS, recent[1:], histograms[1:], strict=True):
                if histogram.count:
                    yield "parts", part, tail.quantiles([0.99], now_ns)[0]
            if telemetry.slo is not None:
                yield from slo_points(telemetry.slo.statistics())


def _sum(one: Any, other: Any) -> Any:
    """Counters of one label, of layers that are there twice, are added up; of other figures the latter one is shown."""
    return one + other if isinstance(one, int) and isinstance(other, int) else other


def _bounded(panel: str, numbers: dict[str, Any]) -> dict[str, Any]:
    most = _LABELS_OF_TABLE if panel == "other" else _LABELS_PER_PANEL
    return numbers if len(numbers) <= most else dict(itertools.islice(numbers.items(), most))
