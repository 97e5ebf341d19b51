"""Prometheus' protobuf format, with native and classic histograms in the same message.

The output is a stream of ``io.prometheus.client.MetricFamily`` messages, each after its length. The field numbers are
from https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto
"""

import functools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence

from streaminfer._internal import IMPORTED_NS
from streaminfer._internal._protobuf_cy import ProtobufWriter
from streaminfer.telemetry.exporters.collection import Labels, Sample
from streaminfer.telemetry.exporters.histogram_points import BOUNDS_S, Exemplar, HistogramPoint
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.exporters.prometheus._histogram_message_cy import write_histogram
from streaminfer.telemetry.protobuf import message

__all__ = ["write_protobuf"]

_KINDS = {"counter": 0, "gauge": 1, "histogram": 4}
_VALUES = {"counter": 3, "gauge": 2, "histogram": 7}
_BOUNDS = tuple(struct.pack("<Bd", 0x11, bound_s) for bound_s in (*BOUNDS_S, math.inf))  # field 2, a double


def write_protobuf(families: Mapping[Metric, Sequence[Sample]]) -> Iterator[bytes]:
    """Yield the bytes of one family after another."""
    for metric, samples in families.items():
        if not samples:
            continue  # Prometheus rejects a family without a metric
        family = message((1, metric.prometheus), (2, metric.help), (3, _KINDS[metric.kind]))
        field, created = _VALUES[metric.kind], b"" if metric.kind == "gauge" else _created(metric.kind, IMPORTED_NS)
        prefix = bytes((field << 3 | 2, 9 + len(created), 0x09))  # a nested message with a double in field 1
        for labels, value in samples:
            if isinstance(value, HistogramPoint):
                exemplars = {exemplar.bucket: _exemplar(exemplar) for exemplar in value.exemplars}
                created_field = _created("histogram", value.created_ns)
                write_histogram(family, _labels(labels), field, value, _BOUNDS, exemplars, created_field)
            else:
                family.data(4, _labels(labels) + prefix + struct.pack("<d", value) + created)
        framed = ProtobufWriter()
        framed.delimited(family)
        yield bytes(framed)


def _exemplar(exemplar: Exemplar) -> bytes:
    trace, span = _pair("trace_id", exemplar.trace_id), _pair("span_id", exemplar.span_id)
    return bytes(message((3, message((1, trace), (1, span), (2, exemplar.value_s), (3, _timestamp(exemplar.unix_ns))))))


@functools.lru_cache(maxsize=4096)
def _labels(labels: Labels) -> bytes:
    return bytes(message(*((1, _pair(name, value)) for name, value in labels)))


def _pair(name: str, value: str) -> ProtobufWriter:
    return message((1, name), (2, value))


@functools.lru_cache(maxsize=16)
def _created(kind: str, created_ns: int) -> bytes:
    return bytes(message(({"counter": 3, "histogram": 15}[kind], _timestamp(created_ns))))


def _timestamp(unix_ns: int) -> bytes:
    return bytes(message((1, unix_ns // 10**9), (2, unix_ns % 10**9)))
