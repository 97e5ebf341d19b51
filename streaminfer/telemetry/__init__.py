"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.cost_meter import CostMeter
    from streaminfer.telemetry.cost.statistics import CostRow, CostStatistics, DeviceCost
    from streaminfer.telemetry.families.label_family import LabelFamily
    from streaminfer.telemetry.histograms.heat_map import LatencyHeatMap
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
    from streaminfer.telemetry.interval_log.interval_log import (
        Interval,
        IntervalLog,
        merge_interval_logs,
        read_interval_log,
    )
    from streaminfer.telemetry.interval_log.worker_histograms import WorkerHistograms
    from streaminfer.telemetry.live_page.app import dashboard
    from streaminfer.telemetry.objectives.alerts import Alert, AlertPair, workbook_pairs
    from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
    from streaminfer.telemetry.outcomes.outcome_table import Estimate, OutcomeRow, OutcomeTable
    from streaminfer.telemetry.outcomes.outcomes import Outcomes
    from streaminfer.telemetry.statistics import SloStatistics, TelemetryStatistics

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
    "Interval",
    "IntervalLog",
    "LabelFamily",
    "LatencyHeatMap",
    "LatencyHistogram",
    "OutcomeRow",
    "OutcomeTable",
    "Outcomes",
    "RollingHistogram",
    "SloStatistics",
    "Telemetry",
    "TelemetryStatistics",
    "WorkerHistograms",
    "dashboard",
    "merge_interval_logs",
    "read_interval_log",
    "workbook_pairs",
]

_HOMES = {
    "Alert": "telemetry.objectives.alerts",
    "AlertPair": "telemetry.objectives.alerts",
    "BurnSignal": "telemetry.objectives.slo",
    "LatencyHeatMap": "telemetry.histograms.heat_map",
    "CostMeter": "telemetry.cost.cost_meter",
    "CostRow": "telemetry.cost.statistics",
    "CostStatistics": "telemetry.cost.statistics",
    "DeviceCost": "telemetry.cost.statistics",
    "Interval": "telemetry.interval_log.interval_log",
    "IntervalLog": "telemetry.interval_log.interval_log",
    "LabelFamily": "telemetry.families.label_family",
    "Estimate": "telemetry.outcomes.outcome_table",
    "OutcomeRow": "telemetry.outcomes.outcome_table",
    "OutcomeTable": "telemetry.outcomes.outcome_table",
    "Outcomes": "telemetry.outcomes.outcomes",
    "RollingHistogram": "telemetry.histograms.rolling_histogram",
    "SLO": "telemetry.objectives.slo",
    "SloStatistics": "telemetry.statistics",
    "TelemetryStatistics": "telemetry.statistics",
    "dashboard": "telemetry.live_page.app",
    "WorkerHistograms": "telemetry.interval_log.worker_histograms",
    "merge_interval_logs": "telemetry.interval_log.interval_log",
    "read_interval_log": "telemetry.interval_log.interval_log",
    "workbook_pairs": "telemetry.objectives.alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
