"""Collection of the statistics of stacks as families of samples, independent of the export format."""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from streaminfer._internal import IMPORTED_NS
from streaminfer._internal.display.unique_name import unique_name
from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer._internal.snapshot import Snapshot
from streaminfer.telemetry.exporters.histogram_points import BOUND_LABELS, Exemplar, HistogramPoint, HistogramReader
from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.exporters.names import CREATED, INNER, LABELED, LATENCY, METRICS, SHARED, STACK_STATE
from streaminfer.telemetry.exporters.opentelemetry.tracing_statistics import TracingStatistics
from streaminfer.telemetry.families.routes import OTHER
from streaminfer.telemetry.services import walk
from streaminfer.telemetry.statistics import TelemetryStatistics
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["MAX_LABEL_VALUES", "OTHER", "Collection", "Labels", "Sample", "label_value", "series_of"]

MAX_LABEL_VALUES = 64
"""Most values of a label with open-ended values, such as the class of an error; later values share one series."""

_MAX_LABEL_LENGTH = 128
_FAILURES = ErrorLog("streaminfer.telemetry")

Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One value of a family.

    Attributes:
        labels: pairs of name and value.
        value: a number, or a histogram.
    """

    labels: Labels
    value: float | HistogramPoint

    @property
    def created_ns(self) -> int:
        """Start of counting, in nanoseconds since 1970."""
        return self.value.created_ns if isinstance(self.value, HistogramPoint) else IMPORTED_NS


def series_of(metric: Metric, sample: Sample) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each series of Prometheus that a sample becomes.

    Those of a histogram are its classic buckets in the order of `BOUND_LABELS`, its sum and its count.
    """
    labels, point = dict(sample.labels), sample.value
    if not isinstance(point, HistogramPoint):
        yield metric.prometheus, labels, point
        return
    for bound, count in zip(BOUND_LABELS, point.cumulative, strict=True):
        yield f"{metric.family}_bucket", {**labels, "le": bound}, count
    yield f"{metric.family}_sum", labels, point.sum_s
    yield f"{metric.family}_count", labels, point.total


class Collection:
    """Samples of any number of stacks at one moment, by metric. Not thread-safe.

    Args:
        reader: reads histograms; ``None``: no histograms.

    Attributes:
        families: samples by metric, in the order in which metrics were found.
    """

    def __init__(self, reader: HistogramReader | None) -> None:
        self.families: dict[Metric, list[Sample]] = {}
        self._reader = reader
        self._visited: set[int] = set()
        self._shared: set[tuple[str, int]] = set()

    @classmethod
    def of(cls, services: Iterable[tuple[str, Sequence[Any]]], reader: HistogramReader | None) -> "Collection":
        """Return the samples of all parts of the services that `name_services` has named."""
        collection = cls(reader)
        for service, parts in services:
            collection.add(service, parts)
        return collection

    def add(self, service: str, parts: Sequence[Any]) -> None:
        """Read every part of a service.

        Args:
            service: value of the label ``service``.
            parts: the parts of the service, from `name_services`.
        """
        service = label_value(service)
        layers: set[str] = set()
        stacks: set[str] = set()
        exemplars: tuple[Exemplar, ...] = ()
        for part, node, place, _, _ in itertools.chain.from_iterable(walk(part, self._visited) for part in parts):
            if node.stack_state:
                unique = unique_name(label_value(place), stacks)  # stacks may share a telemetry
                stacks.add(unique)
                self._read(node, (STACK_STATE,), (("service", service), ("layer", unique)))
                continue  # the layers of a stack have the statistics
            try:
                snapshot = self._telemetry(part) if isinstance(part, Telemetry) else node.statistics()
            except LISTENER_ERRORS as error:  # an error of a user's layer must not suppress the metrics of others
                _FAILURES.report(f"service {service!r}: statistics() of {place or type(part).__name__}", error)
                continue
            if isinstance(snapshot, TracingStatistics):
                exemplars += snapshot.exemplars
            if isinstance(snapshot, Snapshot):
                unique = unique_name(label_value(place or type(part).__name__), layers)
                layers.add(unique)
                self._add_statistics(snapshot, (("service", service), ("layer", unique)))
        if exemplars:
            self._attach(service, exemplars)

    def _attach(self, service: str, exemplars: tuple[Exemplar, ...]) -> None:
        """Attach traced requests to the latency histogram of the service's outermost telemetry."""
        samples = self.families.get(LATENCY, [])
        for position, (labels, value) in enumerate(samples):
            if labels[0] == ("service", service) and isinstance(value, HistogramPoint):
                samples[position] = Sample(labels, value._replace(exemplars=exemplars))
                return

    def _telemetry(self, telemetry: Telemetry) -> TelemetryStatistics:
        snapshot = telemetry.live_statistics()
        if telemetry.slo is not None and id(telemetry.slo) in self._visited:
            return attrs.evolve(snapshot, slo=None)  # shared with another telemetry, and read there
        self._visited.add(id(telemetry.slo))
        return snapshot

    def _add_statistics(self, snapshot: Any, labels: Labels) -> None:
        kind = next((base.__name__ for base in type(snapshot).__mro__ if base.__name__ in METRICS), None)
        if kind is None:
            return
        if kind in SHARED:
            if (kind, snapshot.number) in self._shared:
                return
            self._shared.add((kind, snapshot.number))
        if kind in LABELED:
            labels = (*labels, *((name, label_value(value)) for name, value in snapshot.labels))
        self._read(snapshot, METRICS[kind], labels, snapshot.created_ns if kind in CREATED else IMPORTED_NS)
        for field, label in INNER.get(kind, ()):
            inner = getattr(snapshot, field)
            if not inner:
                continue
            if isinstance(inner, Mapping):
                pairs = [*inner.items()]
            else:
                parts = inner if isinstance(inner, tuple) else (inner,)
                named = label and any("name" in type(each).__annotations__ for each in parts)
                pairs = [(each.name if named else field, each) for each in parts]
            for name, each in pairs:
                self._add_statistics(each, (*labels, (label, label_value(name))) if label else labels)

    def _read(self, snapshot: Any, metrics: Sequence[Metric], labels: Labels, created_ns: int = IMPORTED_NS) -> None:
        reader: Any = self._reader
        for metric in metrics:
            is_histogram = metric.kind == "histogram"
            if is_histogram and reader is None:
                continue
            samples = self.families.setdefault(metric, [])
            for key, held in _values(snapshot, metric):
                value = reader.read(held, created_ns) if is_histogram else held
                if value is not None and value == value:  # noqa: PLR0124 - NaN: not known
                    samples.append(Sample((*labels, (metric.label, key)) if key else labels, value))


def _values(snapshot: Any, metric: Metric) -> Iterator[tuple[str, Any]]:
    for field in metric.fields:
        value = getattr(snapshot, field)
        if metric.states:
            for state in metric.states:
                yield state, int(value == state)
        elif isinstance(value, dict):
            yield from value.items() if metric.kind == "histogram" else _bounded(value)
        else:
            yield field if metric.label else "", int(value) if isinstance(value, bool) else value


def _bounded(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    pairs = list(values.items())
    for key, value in pairs[:MAX_LABEL_VALUES]:
        yield label_value(f"{key:.12g}" if isinstance(key, float) else key), value
    if others := pairs[MAX_LABEL_VALUES:]:
        yield OTHER, sum(value for _, value in others)


def label_value(name: object, encoding: str = "utf-8") -> str:
    """Return a name as a label value: encodable text of bounded length, different for different names."""
    original = str(name)
    text = original.encode(encoding, "backslashreplace").decode(encoding)
    if text == original and len(text) <= _MAX_LABEL_LENGTH:
        return text
    digest = f"~{zlib.crc32(original.encode('utf-8', 'surrogatepass')):08x}"  # the changed text may equal another name
    return text[: _MAX_LABEL_LENGTH - len(digest)] + digest
