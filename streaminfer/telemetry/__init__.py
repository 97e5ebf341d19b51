"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.exporters.prometheus.collector import StackCollector
    from streaminfer.telemetry.exporters.prometheus.scrape_app import metrics_app
    from streaminfer.telemetry.exporters.rules.dashboard_json import grafana_dashboard
    from streaminfer.telemetry.exporters.rules.documents import slo_documents
    from streaminfer.telemetry.exporters.rules.rule_file import alert_rules
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
    from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, workbook_pairs
    from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
    from streaminfer.telemetry.statistics import SloStatistics, TelemetryStatistics

__all__ = [
    "SLO",
    "Alert",
    "AlertPair",
    "BurnSignal",
    "LatencyHistogram",
    "RollingHistogram",
    "SloStatistics",
    "StackCollector",
    "Telemetry",
    "TelemetryStatistics",
    "alert_rules",
    "grafana_dashboard",
    "metrics_app",
    "slo_documents",
    "workbook_pairs",
]

_HOMES = {
    "Alert": "telemetry.objectives.alerts",
    "AlertPair": "telemetry.objectives.alerts",
    "BurnSignal": "telemetry.objectives.slo",
    "RollingHistogram": "telemetry.histograms.rolling_histogram",
    "SLO": "telemetry.objectives.slo",
    "SloStatistics": "telemetry.statistics",
    "StackCollector": "telemetry.exporters.prometheus.collector",
    "TelemetryStatistics": "telemetry.statistics",
    "alert_rules": "telemetry.exporters.rules.rule_file",
    "grafana_dashboard": "telemetry.exporters.rules.dashboard_json",
    "slo_documents": "telemetry.exporters.rules.documents",
    "metrics_app": "telemetry.exporters.prometheus.scrape_app",
    "workbook_pairs": "telemetry.objectives.alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
