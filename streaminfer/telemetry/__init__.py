"""Tail-latency histograms, service-level objectives, and the telemetry of a service."""

import importlib
from typing import TYPE_CHECKING, Any

from streaminfer.telemetry.histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.alerts import Alert, AlertPair, workbook_pairs
    from streaminfer.telemetry.rolling import RollingHistogram
    from streaminfer.telemetry.slo import SLO, BurnSignal
    from streaminfer.telemetry.statistics import SloStatistics, TelemetryStatistics

__all__ = [
    "SLO",
    "Alert",
    "AlertPair",
    "BurnSignal",
    "LatencyHistogram",
    "RollingHistogram",
    "SloStatistics",
    "Telemetry",
    "TelemetryStatistics",
    "workbook_pairs",
]

_LATER = {
    "Alert": "alerts",
    "AlertPair": "alerts",
    "BurnSignal": "slo",
    "RollingHistogram": "rolling",
    "SLO": "slo",
    "SloStatistics": "statistics",
    "TelemetryStatistics": "statistics",
    "workbook_pairs": "alerts",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
