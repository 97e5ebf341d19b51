"""Prometheus' text formats: plain text 0.0.4, and OpenMetrics 1.0.0 with creation times and exemplars.

References: https://prometheus.io/docs/instrumenting/exposition_formats/,
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

from streaminfer.telemetry.exporters.collection import Labels, Sample
from streaminfer.telemetry.exporters.histogram_points import BOUND_LABELS, Exemplar, HistogramPoint
from streaminfer.telemetry.exporters.metric import Metric

__all__ = ["write_openmetrics", "write_text"]


def write_text(families: Mapping[Metric, Sequence[Sample]]) -> Iterator[str]:
    """Yield the plain text of one family after another."""
    for metric, samples in families.items():
        name = metric.prometheus
        lines = [f"# HELP {name} {_escape_help(metric.help)}", f"# TYPE {name} {metric.kind}"]
        for sample in samples:
            lines += _series(name, sample, with_exemplars=False)
        yield "\n".join(lines) + "\n"


def write_openmetrics(families: Mapping[Metric, Sequence[Sample]]) -> Iterator[str]:
    """Yield the OpenMetrics text of one family after another, and the end marker."""
    for metric, samples in families.items():
        name, series = metric.family, metric.prometheus
        lines = [f"# TYPE {name} {metric.kind}"]
        if metric.unit:
            lines.append(f"# UNIT {name} {metric.unit}")
        lines.append(f"# HELP {name} {_escape(metric.help)}")
        for sample in samples:
            lines += _series(series, sample, with_exemplars=True)
            if metric.kind != "gauge":
                lines.append(f"{name}_created{{{_labels(sample.labels)}}} {sample.created_ns / 1e9:.3f}")
        yield "\n".join(lines) + "\n"
    yield "# EOF\n"


def _series(name: str, sample: Sample, *, with_exemplars: bool) -> list[str]:
    labels, point = _labels(sample.labels), sample.value
    if not isinstance(point, HistogramPoint):
        return [f"{name}{{{labels}}} {_number(point)}"]
    begin = f"{name}_bucket{{{labels},"
    lines = [f'{begin}le="{bound}"}} {count}' for bound, count in zip(BOUND_LABELS, point.cumulative, strict=True)]
    if with_exemplars:
        for exemplar in point.exemplars:
            lines[exemplar.bucket] = f"{lines[exemplar.bucket].partition(' # ')[0]} # {_exemplar(exemplar)}"
    lines.append(f"{name}_sum{{{labels}}} {_number(point.sum_s)}")
    lines.append(f"{name}_count{{{labels}}} {point.total}")
    return lines


def _exemplar(exemplar: Exemplar) -> str:
    traced = f'{{trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"}}'
    return f"{traced} {exemplar.value_s!r} {exemplar.unix_ns / 1e9:.3f}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


@functools.lru_cache(maxsize=4096)
def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels)


def _escape(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
