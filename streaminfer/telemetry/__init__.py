"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.cost_meter import CostMeter
    from streaminfer.telemetry.cost.statistics import CostRow, CostStatistics, DeviceCost
    from streaminfer.telemetry.exporters.event_log import EventLog, JsonLines
    from streaminfer.telemetry.exporters.opentelemetry.metric_exporter import StackMetricExporter
    from streaminfer.telemetry.exporters.opentelemetry.tracing import Tracing
    from streaminfer.telemetry.exporters.opentelemetry.tracing_statistics import TracingStatistics
    from streaminfer.telemetry.exporters.prometheus.collector import StackCollector
    from streaminfer.telemetry.exporters.prometheus.scrape_app import metrics_app
    from streaminfer.telemetry.exporters.rules.dashboard_json import grafana_dashboard
    from streaminfer.telemetry.exporters.rules.documents import slo_documents
    from streaminfer.telemetry.exporters.rules.rule_file import alert_rules
    from streaminfer.telemetry.families.label_family import LabelFamily
    from streaminfer.telemetry.histograms.heat_map import LatencyHeatMap
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
    from streaminfer.telemetry.interval_log.interval_log import (
        Interval,
        IntervalLog,
        merge_interval_logs,
        read_interval_log,
    )
    from streaminfer.telemetry.interval_log.worker_histograms import WorkerHistograms, WorkerStatistics
    from streaminfer.telemetry.live_page.app import dashboard
    from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, workbook_pairs
    from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
    from streaminfer.telemetry.outcomes.outcome_table import Estimate, OutcomeRow, OutcomeTable
    from streaminfer.telemetry.outcomes.outcomes import Outcomes
    from streaminfer.telemetry.statistics import LabeledStatistics, SloStatistics, TelemetryStatistics

__all__ = [
    "SLO",
    "Alert",
    "AlertPair",
    "BurnSignal",
    "CostMeter",
    "CostRow",
    "CostStatistics",
    "DeviceCost",
    "Estimate",
    "EventLog",
    "Interval",
    "IntervalLog",
    "JsonLines",
    "LabelFamily",
    "LabeledStatistics",
    "LatencyHeatMap",
    "LatencyHistogram",
    "OutcomeRow",
    "OutcomeTable",
    "Outcomes",
    "RollingHistogram",
    "SloStatistics",
    "StackCollector",
    "StackMetricExporter",
    "Telemetry",
    "TelemetryStatistics",
    "Tracing",
    "TracingStatistics",
    "WorkerHistograms",
    "WorkerStatistics",
    "alert_rules",
    "dashboard",
    "grafana_dashboard",
    "merge_interval_logs",
    "metrics_app",
    "read_interval_log",
    "slo_documents",
    "workbook_pairs",
]

_HOMES = {
    "SLO": "telemetry.objectives.slo",
    "Alert": "telemetry.objectives.alerts",
    "AlertPair": "telemetry.objectives.alerts",
    "BurnSignal": "telemetry.objectives.slo",
    "LatencyHeatMap": "telemetry.histograms.heat_map",
    "CostMeter": "telemetry.cost.cost_meter",
    "CostRow": "telemetry.cost.statistics",
    "CostStatistics": "telemetry.cost.statistics",
    "DeviceCost": "telemetry.cost.statistics",
    "Estimate": "telemetry.outcomes.outcome_table",
    "EventLog": "telemetry.exporters.event_log",
    "Interval": "telemetry.interval_log.interval_log",
    "IntervalLog": "telemetry.interval_log.interval_log",
    "JsonLines": "telemetry.exporters.event_log",
    "LabelFamily": "telemetry.families.label_family",
    "LabeledStatistics": "telemetry.statistics",
    "OutcomeRow": "telemetry.outcomes.outcome_table",
    "OutcomeTable": "telemetry.outcomes.outcome_table",
    "Outcomes": "telemetry.outcomes.outcomes",
    "RollingHistogram": "telemetry.histograms.rolling_histogram",
    "SloStatistics": "telemetry.statistics",
    "StackCollector": "telemetry.exporters.prometheus.collector",
    "StackMetricExporter": "telemetry.exporters.opentelemetry.metric_exporter",
    "TelemetryStatistics": "telemetry.statistics",
    "Tracing": "telemetry.exporters.opentelemetry.tracing",
    "TracingStatistics": "telemetry.exporters.opentelemetry.tracing_statistics",
    "dashboard": "telemetry.live_page.app",
    "WorkerHistograms": "telemetry.interval_log.worker_histograms",
    "WorkerStatistics": "telemetry.interval_log.worker_histograms",
    "alert_rules": "telemetry.exporters.rules.rule_file",
    "grafana_dashboard": "telemetry.exporters.rules.dashboard_json",
    "merge_interval_logs": "telemetry.interval_log.interval_log",
    "metrics_app": "telemetry.exporters.prometheus.scrape_app",
    "read_interval_log": "telemetry.interval_log.interval_log",
    "slo_documents": "telemetry.exporters.rules.documents",
    "workbook_pairs": "telemetry.objectives.alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
