"""`StackMetricExporter`: adds our metrics to those of the OpenTelemetry SDK at export time.

Requests make no calls to the SDK. When a reader of the SDK collects metrics, it calls its exporter; this exporter adds
the metrics of the stacks and passes everything to the inner exporter. Histograms become exponential histograms, with
the same buckets as in Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streaminfer._internal import IMPORTED_NS
from streaminfer._internal.loading.extras import require
from streaminfer.telemetry.exporters.collection import Collection, Labels
from streaminfer.telemetry.exporters.histogram_points import HistogramPoint, HistogramReader
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.services import name_services

if TYPE_CHECKING:
    from opentelemetry import metrics as api
    from opentelemetry.sdk import metrics as sdk_metrics
    from opentelemetry.sdk.metrics import export as sdk
    from opentelemetry.sdk.util import instrumentation
else:
    _NEEDED = {"extra": "otel", "purpose": "StackMetricExporter"}
    sdk = require("opentelemetry.sdk.metrics.export", **_NEEDED)
    sdk_metrics = require("opentelemetry.sdk.metrics", **_NEEDED)
    api = require("opentelemetry.metrics", **_NEEDED)
    instrumentation = require("opentelemetry.sdk.util.instrumentation", **_NEEDED)

__all__ = ["StackMetricExporter"]

_SCOPE = "streaminfer"
_MAX_DENSE = 1_280  # most buckets from the shortest to the longest duration: OTLP also sends empty ones


class StackMetricExporter(sdk.MetricExporter):
    """Exporter that wraps another exporter of the OpenTelemetry SDK and adds the metrics of stacks.

    Sums and histograms are cumulative. Call :meth:`attach`, because the SDK exports only if an instrument has a value.

    Args:
        exporter: an exporter of the SDK, such as ``OTLPMetricExporter``.
        stacks: as for `metrics_app`.

    Raises:
        MissingExtra: the SDK is not installed (``pip install 'streaminfer[otel]'``).

    Example:
        ::

            exporter = StackMetricExporter(OTLPMetricExporter(), stack)
            provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
            exporter.attach(provider)
    """

    def __init__(self, exporter: sdk.MetricExporter, *stacks: Any) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._services = name_services(stacks)

    def attach(self, provider: api.MeterProvider) -> None:
        """Add a gauge ``streaminfer.services`` to a provider, so that the SDK always has something to export."""
        provider.get_meter(_SCOPE).create_observable_gauge(
            "streaminfer.services",
            [lambda _: [api.Observation(len(self._services))]],
            unit="1",
            description="Services whose metrics are exported.",
        )

    def export(
        self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> sdk.MetricExportResult:
        """Add the current metrics of the stacks, and export everything."""
        first, *others = metrics_data.resource_metrics
        own_metrics = sdk.ScopeMetrics(instrumentation.InstrumentationScope(_SCOPE), self._metrics(), "")
        merged = sdk.ResourceMetrics(first.resource, [*first.scope_metrics, own_metrics], first.schema_url)
        return self._exporter.export(sdk.MetricsData([merged, *others]), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the inner exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut down the inner exporter."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _metrics(self) -> list[sdk.Metric]:
        collection = Collection.of(self._services, HistogramReader())
        return [
            sdk.Metric(metric.opentelemetry, metric.help, metric.ucum, _data(metric, samples))
            for metric, samples in collection.families.items()
            if samples
        ]


def _data(metric: Metric, samples: Sequence[Any]) -> Any:
    now_ns = time.time_ns()
    cumulative = sdk.AggregationTemporality.CUMULATIVE
    if metric.kind == "histogram":
        points = [_exponential(labels, point, now_ns) for labels, point in samples]
        return sdk.ExponentialHistogram([point for point in points if point.count], cumulative)
    numbers = [sdk.NumberDataPoint(dict(labels), IMPORTED_NS, now_ns, value) for labels, value in samples]
    return sdk.Gauge(numbers) if metric.kind == "gauge" else sdk.Sum(numbers, cumulative, is_monotonic=True)


def _exponential(labels: Labels, point: Any, now_ns: int) -> sdk.ExponentialHistogramDataPoint:
    scale, offset, counts = _dense(point)
    return sdk.ExponentialHistogramDataPoint(
        attributes=dict(labels),
        start_time_unix_nano=point.created_ns,
        time_unix_nano=now_ns,
        count=point.total,
        sum=point.sum_s,
        scale=scale,
        zero_count=point.zeros,
        positive=sdk.Buckets(offset, counts),
        negative=sdk.Buckets(0, []),
        flags=0,
        min=point.min_s,
        max=point.max_s,
        exemplars=[
            sdk_metrics.Exemplar({}, it.value_s, it.unix_ns, int(it.span_id, 16), int(it.trace_id, 16))
            for it in point.exemplars
        ],
    )


def _dense(point: HistogramPoint) -> tuple[int, int, list[int]]:
    """Return scale, offset and counts without gaps; bucket ``i`` of Prometheus is ``i - 1`` of OpenTelemetry."""
    if not point.indexes:
        return point.schema, 0, []
    shift = 0
    while (point.indexes[-1] >> shift) - (point.indexes[0] >> shift) >= _MAX_DENSE - 1:
        shift += 1
    numbers = [(index + (1 << shift) - 1 >> shift) - 1 for index in point.indexes]
    counts = [0] * (numbers[-1] - numbers[0] + 1)
    for number, count in zip(numbers, point.counts, strict=True):
        counts[number - numbers[0]] += count
    return point.schema - shift, numbers[0], counts
