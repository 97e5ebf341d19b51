"""Tail-latency histograms, and the telemetry of a service."""

from typing import TYPE_CHECKING, Any

from streaminfer.telemetry.histogram import LatencyHistogram
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from streaminfer.telemetry.statistics import TelemetryStatistics

__all__ = ["LatencyHistogram", "Telemetry", "TelemetryStatistics"]


def __getattr__(name: str) -> Any:
    if name == "TelemetryStatistics":
        from streaminfer.telemetry.statistics import TelemetryStatistics  # noqa: PLC0415 - serving does not need it

        return TelemetryStatistics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
