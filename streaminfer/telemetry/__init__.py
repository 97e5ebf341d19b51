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
    from streaminfer.telemetry.objectives.slo_plot import plot_budget
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
    "plot_budget",
    "read_interval_log",
    "slo_documents",
    "workbook_pairs",
]

_HOMES = {
    "telemetry.cost.cost_meter": ["CostMeter"],
    "telemetry.cost.statistics": ["CostRow", "CostStatistics", "DeviceCost"],
    "telemetry.exporters.event_log": ["EventLog", "JsonLines"],
    "telemetry.exporters.opentelemetry.metric_exporter": ["StackMetricExporter"],
    "telemetry.exporters.opentelemetry.tracing": ["Tracing"],
    "telemetry.exporters.opentelemetry.tracing_statistics": ["TracingStatistics"],
    "telemetry.exporters.prometheus.collector": ["StackCollector"],
    "telemetry.exporters.prometheus.scrape_app": ["metrics_app"],
    "telemetry.exporters.rules.dashboard_json": ["grafana_dashboard"],
    "telemetry.exporters.rules.documents": ["slo_documents"],
    "telemetry.exporters.rules.rule_file": ["alert_rules"],
    "telemetry.families.label_family": ["LabelFamily"],
    "telemetry.histograms.heat_map": ["LatencyHeatMap"],
    "telemetry.histograms.rolling_histogram": ["RollingHistogram"],
    "telemetry.interval_log.interval_log": ["Interval", "IntervalLog", "merge_interval_logs", "read_interval_log"],
    "telemetry.interval_log.worker_histograms": ["WorkerHistograms", "WorkerStatistics"],
    "telemetry.live_page.app": ["dashboard"],
    "telemetry.objectives.alerts": ["Alert", "AlertPair", "workbook_pairs"],
    "telemetry.objectives.slo": ["SLO", "BurnSignal"],
    "telemetry.objectives.slo_plot": ["plot_budget"],
    "telemetry.outcomes.outcome_table": ["Estimate", "OutcomeRow", "OutcomeTable"],
    "telemetry.outcomes.outcomes": ["Outcomes"],
    "telemetry.statistics": ["LabeledStatistics", "SloStatistics", "TelemetryStatistics"],
}


if not TYPE_CHECKING:  # type checkers read the names from the block above and report others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES, optional=["StackMetricExporter", "Tracing"])
