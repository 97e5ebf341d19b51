"""`RayMetrics`: the statistics of a stack as Ray metrics, which Ray's agents export to Prometheus.

Ray adds the prefix ``ray_`` and, in replicas of Ray Serve, the labels ``application``, ``deployment`` and ``replica``.
To Ray all metrics are gauges, also counters and the buckets of histograms. Each is set to its current value, under the
name that Prometheus queries use, so that ``rate`` and ``histogram_quantile`` work. Values of labels are ASCII: other
characters are escaped, and a checksum is appended.
"""

from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer.stack import Stack
from streaminfer.telemetry.exporters.collection import Collection, label_value, series_of
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.services import name_services

__all__ = ["RayMetrics"]


class RayMetrics:
    """Publishes the statistics of a stack.

    Args:
        stack: the stack.

    Raises:
        MissingExtra: Ray is not installed (``pip install 'streaminfer[ray]'``).
    """

    def __init__(self, stack: Stack) -> None:
        self._metrics = require("ray.serve.metrics", extra="ray", purpose="RayMetrics")
        self._services = name_services([stack])
        self._gauges: dict[tuple[str, tuple[str, ...]], Any] = {}

    def publish(self) -> None:
        """Set each metric to its current value."""
        for metric, samples in Collection.of(self._services, HistogramReader()).families.items():
            for sample in samples:
                for name, labels, value in series_of(metric, sample):
                    self._set(metric, name, labels, value)

    def _set(self, metric: Metric, name: str, labels: dict[str, str], value: float) -> None:
        # Ray adds the labels of the replica under these names, and accepts ASCII only
        labels = {
            f"{key}_" if key in {"application", "deployment", "replica"} else key: label_value(labels[key], "ascii")
            for key in labels
        }
        keys = tuple(sorted(labels))
        gauge = self._gauges.get((name, keys))
        if gauge is None:
            gauge = self._gauges[name, keys] = self._metrics.Gauge(name, description=metric.help, tag_keys=keys)
        gauge.set(value, tags=labels)
