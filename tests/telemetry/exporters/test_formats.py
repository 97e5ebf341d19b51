"""The three formats of Prometheus, read by parsers of other projects."""

import math

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import CollectorRegistry
from telemetries import DURATIONS_S, telemetry

import streaminfer as si
from streaminfer.telemetry.exporters.collection import Collection, Sample
from streaminfer.telemetry.exporters.histogram_points import BOUNDS_S, Exemplar, HistogramReader
from streaminfer.telemetry.exporters.metric import gauge
from streaminfer.telemetry.exporters.prometheus.protobuf_format import write_protobuf
from streaminfer.telemetry.exporters.prometheus.text_formats import write_openmetrics, write_text
from streaminfer.telemetry.services import name_services

AWKWARD = 'a "quoted" \\ name\nof two lines'
FIELDS = {  # of client_model's metrics.proto: message → field → number, type, label
    "LabelPair": {"name": (1, "string"), "value": (2, "string")},
    "Timestamp": {"seconds": (1, "int64"), "nanos": (2, "int32")},
    "Value": {"value": (1, "double"), "created_timestamp": (3, "Timestamp")},
    "Exemplar": {"label": (1, "*LabelPair"), "value": (2, "double"), "timestamp": (3, "Timestamp")},
    "Bucket": {"cumulative_count": (1, "uint64"), "upper_bound": (2, "double"), "exemplar": (3, "Exemplar")},
    "BucketSpan": {"offset": (1, "sint32"), "length": (2, "uint32")},
    "Histogram": {
        "sample_count": (1, "uint64"),
        "sample_sum": (2, "double"),
        "bucket": (3, "*Bucket"),
        "schema": (5, "sint32"),
        "zero_threshold": (6, "double"),
        "zero_count": (7, "uint64"),
        "positive_span": (12, "*BucketSpan"),
        "positive_delta": (13, "*sint64"),
        "created_timestamp": (15, "Timestamp"),
    },
    "Metric": {
        "label": (1, "*LabelPair"),
        "gauge": (2, "Value"),
        "counter": (3, "Value"),
        "histogram": (7, "Histogram"),
    },
    "MetricFamily": {"name": (1, "string"), "help": (2, "string"), "type": (3, "int32"), "metric": (4, "*Metric")},
}


@pytest.fixture(scope="module")
def metric_family():
    """Return the generated class of a metric family, from the field numbers of Prometheus."""
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="p", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, text) in fields.items():
            made = message.field.add(name=field, number=number, label=3 if text.startswith("*") else 1)
            kind = text.lstrip("*")
            if kind in FIELDS:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".p.{kind}"
            else:
                made.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.MetricFamily"))


@pytest.fixture(scope="module")
def families():
    """Return the metric families of one service, with labels that need escaping."""
    found = telemetry(AWKWARD, DURATIONS_S["lognormal"][:10_000], slo=si.SLO(AWKWARD, threshold_s=0.05))
    found.fail(si.Overloaded("no"))
    collection = Collection(HistogramReader())
    for name, parts in name_services([found, si.CircuitBreaker(name="b")]):
        collection.add(name, parts)
    return collection.families


def decode(families, metric_family):
    found = {}
    data = b"".join(write_protobuf(families))
    while data:
        length, shift, at = 0, 0, 0
        while True:
            length |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        family = metric_family.FromString(data[at : at + length])
        found[family.name] = family
        data = data[at + length :]
    return found


def flat(families):
    """Return every number of the families, under the name that it has in a text format."""
    found = {}
    for metric, samples in families.items():
        for labels, value in samples:
            if metric.kind == "histogram":
                for bound, count in zip((*BOUNDS_S, float("inf")), value.cumulative, strict=True):
                    found[f"{metric.family}_bucket", frozenset({*labels, ("le", bound)})] = count
                found[f"{metric.family}_count", frozenset(labels)] = value.total
                found[f"{metric.family}_sum", frozenset(labels)] = value.sum_s
            else:
                found[metric.prometheus, frozenset(labels)] = value
    return found


def parsed(metrics):
    return {
        (
            sample.name,
            frozenset((key, float(value) if key == "le" else value) for key, value in sample.labels.items()),
        ): sample.value
        for metric in metrics
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_plain_text_round_trips(families):
    """The parser of prometheus_client reads each value and label back."""
    assert parsed(parse_text("".join(write_text(families)))) == flat(families)


def test_openmetrics_text_round_trips(families):
    """OpenMetrics' strict parser reads each value, with units, help and creation times."""
    metrics = list(parse_openmetrics("".join(write_openmetrics(families))))

    assert parsed(metrics) == flat(families)
    named = {metric.name: metric for metric in metrics}
    assert named["streaminfer_request_duration_seconds"].unit == "seconds"
    assert named["streaminfer_requests"].documentation.startswith("Completed requests")
    created = [sample for sample in named["streaminfer_requests"].samples if sample.name.endswith("_created")]
    assert created[0].value > 1.7e9


def test_protobuf_round_trips(families, metric_family):
    """Generated classes read each value, the classic buckets and the native ones."""
    decoded = decode(families, metric_family)

    assert {metric.prometheus for metric, samples in families.items() if samples} == set(decoded)
    for metric, samples in families.items():
        for sample, read in zip(samples, decoded[metric.prometheus].metric if samples else (), strict=True):
            assert [(pair.name, pair.value) for pair in read.label] == list(sample.labels)
            if metric.kind != "histogram":
                assert getattr(read, metric.kind).value == sample.value
                continue
            point, got = sample.value, read.histogram
            assert (got.sample_count, got.sample_sum, got.schema, got.zero_count) == (
                point.total, point.sum_s, point.schema, point.zeros,
            )  # fmt: skip
            assert [bucket.cumulative_count for bucket in got.bucket] == list(point.cumulative)
            assert [bucket.upper_bound for bucket in got.bucket] == [*BOUNDS_S, math.inf]
            assert native_buckets(got) == dict(zip(point.indexes, point.counts, strict=True))


def native_buckets(histogram):
    found, index, count = {}, 0, 0
    deltas = iter(histogram.positive_delta)
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += next(deltas)
            if count:
                found[index] = count
            index += 1
    assert next(deltas, None) is None
    return found


def test_empty_histogram_is_marked_native(metric_family):
    """An empty histogram has a span without buckets, which marks it as native."""
    collection = Collection(HistogramReader())
    collection.add("s", [si.Telemetry("s")])

    histogram = decode(collection.families, metric_family)["streaminfer_request_duration_seconds"].metric[0].histogram

    assert [(span.offset, span.length) for span in histogram.positive_span] == [(0, 0)]


def test_exemplars_are_on_their_buckets(metric_family):
    """A traced request is at the bucket of its latency, in OpenMetrics and in protobuf."""
    found = telemetry("s", [0.003])
    collection = Collection(HistogramReader())
    collection.add("s", [found])
    traced = Exemplar(0.003, "a" * 32, "b" * 16, 1_700_000_000_000_000_000)
    families = {
        metric: [Sample(labels, value._replace(exemplars=(traced,))) for labels, value in samples]
        for metric, samples in collection.families.items()
        if metric.name == "request.duration"
    }

    text = "".join(write_openmetrics(families))
    [metric] = parse_openmetrics(text)
    [marked] = [sample for sample in metric.samples if sample.exemplar]
    histogram = decode(families, metric_family)["streaminfer_request_duration_seconds"].metric[0].histogram
    [bucket] = [bucket for bucket in histogram.bucket if bucket.HasField("exemplar")]

    assert (marked.labels["le"], marked.exemplar.value, marked.exemplar.labels["trace_id"]) == (
        "0.005",
        0.003,
        "a" * 32,
    )
    assert (bucket.upper_bound, bucket.exemplar.value, bucket.exemplar.timestamp.seconds) == (
        0.005,
        0.003,
        1_700_000_000,
    )
    assert "trace_id" not in "".join(write_text(families))


@pytest.mark.parametrize(("value", "written"), [(math.inf, "+Inf"), (-math.inf, "-Inf")])
@pytest.mark.parametrize("write", [write_text, write_openmetrics])
def test_infinity_is_written_as_prometheus_reads_it(write, value, written):
    """Infinity is written as ``+Inf`` or ``-Inf``."""
    families = {gauge("x.value", "A value."): [Sample((("service", "s"),), value)]}

    assert next(write(families)).endswith(f'streaminfer_x_value{{service="s"}} {written}\n')


def test_registry_collector_yields_the_same_values():
    """A registry of prometheus_client collects every value from a `StackCollector`."""
    found = telemetry("faces", DURATIONS_S["narrow"][:1000])
    registry = CollectorRegistry()
    registry.register(si.telemetry.StackCollector(found))
    collection = Collection(HistogramReader())
    collection.add("faces", [found])

    assert parsed(registry.collect()) == flat(collection.families)


@pytest.mark.parametrize("requests", [10, 100, 300, 1_000, 3_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_native_series_takes_less_than_a_kilobyte(requests, spread):
    """A histogram takes at most 1,024 bytes, including its name, help, labels and classic buckets."""
    durations_s = np.random.default_rng(0).lognormal(-4.0, spread, requests)
    collection = Collection(HistogramReader())
    collection.add("a-service-with-a-name", [telemetry("x", durations_s)])
    families = {metric: samples for metric, samples in collection.families.items() if metric.name == "request.duration"}

    assert len(b"".join(write_protobuf(families))) <= 1024
