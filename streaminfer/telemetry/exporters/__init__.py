"""Exporters of statistics: Prometheus, OpenTelemetry, alert rules and dashboards, events as JSON lines."""
