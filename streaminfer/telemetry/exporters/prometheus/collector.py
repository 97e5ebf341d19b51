"""`StackCollector`: adds our metrics to a registry of `prometheus_client`, next to the application's own metrics."""

from collections.abc import Iterator
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer.telemetry.exporters.collection import Collection, Sample, series_of
from streaminfer.telemetry.exporters.histogram_points import Exemplar, HistogramPoint, HistogramReader
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.services import name_services

__all__ = ["StackCollector"]


class StackCollector:
    """Collector for ``prometheus_client.REGISTRY.register``, with classic histograms: that library has no others.

    Args:
        stacks: as for `metrics_app`.

    Raises:
        MissingExtra: ``prometheus_client`` is not installed (``pip install 'streaminfer[prometheus]'``).

    Example:
        ``prometheus_client.REGISTRY.register(StackCollector(stack))``
    """

    def __init__(self, *stacks: Any) -> None:
        self._core = require("prometheus_client.core", extra="prometheus", purpose="StackCollector")
        self._services = name_services(stacks)

    def collect(self) -> Iterator[Any]:
        """Yield a ``Metric`` of ``prometheus_client`` for each of our metrics."""
        for metric, samples in Collection.of(self._services, HistogramReader()).families.items():
            family = self._core.Metric(metric.family, metric.help, metric.kind, metric.unit)
            for sample in samples:
                self._add(family, metric, sample)
            yield family

    def _add(self, family: Any, metric: Metric, sample: Sample) -> None:
        exemplars = {}
        if isinstance(sample.value, HistogramPoint):
            exemplars = {exemplar.bucket: self._exemplar(exemplar) for exemplar in sample.value.exemplars}
        for number, (name, labels, value) in enumerate(series_of(metric, sample)):
            family.add_sample(name, labels, value, exemplar=exemplars.get(number))
        if metric.kind != "gauge":
            family.add_sample(f"{metric.family}_created", dict(sample.labels), sample.created_ns / 1e9)

    def _exemplar(self, exemplar: Exemplar) -> Any:
        labels = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
        return self._core.Exemplar(labels, exemplar.value_s, exemplar.unix_ns / 1e9)
