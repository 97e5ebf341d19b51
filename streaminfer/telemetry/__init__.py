"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.exporters.event_log import EventLog, JsonLines
    from streaminfer.telemetry.exporters.opentelemetry.metric_exporter import StackMetricExporter
    from streaminfer.telemetry.exporters.opentelemetry.tracing import Tracing
    from streaminfer.telemetry.exporters.opentelemetry.tracing_statistics import TracingStatistics
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
    "EventLog",
    "JsonLines",
    "LatencyHistogram",
    "RollingHistogram",
    "SloStatistics",
    "StackCollector",
    "StackMetricExporter",
    "Telemetry",
    "TelemetryStatistics",
    "Tracing",
    "TracingStatistics",
    "alert_rules",
    "grafana_dashboard",
    "metrics_app",
    "slo_documents",
    "workbook_pairs",
]

_HOMES = {
    "SLO": "telemetry.objectives.slo",
    "Alert": "telemetry.objectives.alerts",
    "AlertPair": "telemetry.objectives.alerts",
    "BurnSignal": "telemetry.objectives.slo",
    "EventLog": "telemetry.exporters.event_log",
    "JsonLines": "telemetry.exporters.event_log",
    "RollingHistogram": "telemetry.histograms.rolling_histogram",
    "SloStatistics": "telemetry.statistics",
    "StackCollector": "telemetry.exporters.prometheus.collector",
    "StackMetricExporter": "telemetry.exporters.opentelemetry.metric_exporter",
    "TelemetryStatistics": "telemetry.statistics",
    "Tracing": "telemetry.exporters.opentelemetry.tracing",
    "TracingStatistics": "telemetry.exporters.opentelemetry.tracing_statistics",
    "alert_rules": "telemetry.exporters.rules.rule_file",
    "grafana_dashboard": "telemetry.exporters.rules.dashboard_json",
    "metrics_app": "telemetry.exporters.prometheus.scrape_app",
    "slo_documents": "telemetry.exporters.rules.documents",
    "workbook_pairs": "telemetry.objectives.alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
