"""Tail-latency histograms, and the telemetry of a service."""

from streaminfer.telemetry.histogram import LatencyHistogram
from streaminfer.telemetry.statistics import TelemetryStatistics
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["LatencyHistogram", "Telemetry", "TelemetryStatistics"]
