"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms.heat_map import LatencyHeatMap
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
    from streaminfer.telemetry.live_page.app import dashboard
    from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, workbook_pairs
    from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
    from streaminfer.telemetry.statistics import SloStatistics, TelemetryStatistics

__all__ = [
    "SLO",
    "Alert",
    "AlertPair",
    "BurnSignal",
    "LatencyHeatMap",
    "LatencyHistogram",
    "RollingHistogram",
    "SloStatistics",
    "Telemetry",
    "TelemetryStatistics",
    "dashboard",
    "workbook_pairs",
]

_HOMES = {
    "Alert": "telemetry.objectives.alerts",
    "AlertPair": "telemetry.objectives.alerts",
    "BurnSignal": "telemetry.objectives.slo",
    "LatencyHeatMap": "telemetry.histograms.heat_map",
    "RollingHistogram": "telemetry.histograms.rolling_histogram",
    "SLO": "telemetry.objectives.slo",
    "SloStatistics": "telemetry.statistics",
    "TelemetryStatistics": "telemetry.statistics",
    "dashboard": "telemetry.live_page.app",
    "workbook_pairs": "telemetry.objectives.alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
