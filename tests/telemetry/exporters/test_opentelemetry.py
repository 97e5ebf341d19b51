"""Metrics and traces through the SDK of OpenTelemetry, and over OTLP."""

import asyncio
import concurrent.futures
import itertools
import re
import time

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from telemetries import DURATIONS_S, telemetry

import streaminfer as si
from streaminfer._request_cy import Timings
from streaminfer.telemetry import StackMetricExporter, Tracing
from streaminfer.telemetry.exporters.collection import Collection
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.names import METRICS, STACK_STATE
from streaminfer.telemetry.exporters.opentelemetry.metric_exporter import _MAX_DENSE, _dense
from streaminfer.testing import HANG, ScriptedBackend, run


class Capture(MetricExporter):
    """Exporter that keeps the data that the SDK exports."""

    def __init__(self):
        super().__init__()
        self.got = []

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.got.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.closed = True


class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer, trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP receiver on loopback."""

    def __enter__(self):
        self.requests = []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def Export(self, request, context):  # noqa: N802 - name of the service's method
        self.requests.append(request)
        is_metrics = isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest)
        service = metrics_service_pb2 if is_metrics else trace_service_pb2
        return service.ExportMetricsServiceResponse() if is_metrics else service.ExportTraceServiceResponse()


def exported(exporter, *stacks, instrument=False):
    """Export the stacks in one collection, through a `StackMetricExporter` around an exporter."""
    wrapped = StackMetricExporter(exporter, *stacks)
    provider = MeterProvider([PeriodicExportingMetricReader(wrapped, export_interval_millis=float("inf"))])
    wrapped.attach(provider)
    if instrument:
        provider.get_meter("mine").create_histogram("http.server.request.duration", "s").record(0.25)
    provider.force_flush()
    provider.shutdown()


def by_name(metrics_data):
    [resource] = metrics_data.resource_metrics
    return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}


@pytest.mark.parametrize("shape", DURATIONS_S)
def test_histogram_becomes_exponential(shape):
    """Scale, offset and counts of the exponential point give the quantile, to the width of a bucket."""
    capture = Capture()
    found = telemetry("faces", DURATIONS_S[shape])

    exported(capture, found)

    metric = by_name(capture.got[0])["streaminfer.request.duration"]
    [point] = metric.data.data_points
    assert (metric.unit, point.count, point.attributes["service"]) == ("s", len(DURATIONS_S[shape]), "faces")
    assert sum(point.positive.bucket_counts) + point.zero_count == point.count
    base = 2.0 ** (2.0**-point.scale)
    seen = point.zero_count
    position = 0
    while (seen := seen + point.positive.bucket_counts[position]) < 0.99 * point.count:
        position += 1
    upper = base ** (point.positive.offset + position + 1)
    assert upper / base * 0.999 <= found._histograms[0].quantile(0.99) <= upper * 1.001


def test_dense_buckets_are_bounded():
    """A point with extremes that are far apart loses resolution instead of sending thousands of zeros."""
    found = si.LatencyHistogram()
    for seconds in (1e-6, 3600.0):
        found.record(seconds)
    point = HistogramReader().read(found)

    scale, offset, counts = _dense(point)

    assert sum(counts) == 2
    assert len(counts) <= _MAX_DENSE
    base = 2.0 ** (2.0**-scale)
    assert base**offset <= 1.1e-6
    assert base ** (offset + len(counts)) >= 3600.0


def test_metrics_coexist_with_application_metrics():
    """Other instruments are untouched; counters are monotonic sums, and names and units are OpenTelemetry's."""
    capture = Capture()

    exported(capture, telemetry("faces", [0.01], slo=si.SLO("faces", threshold_s=0.05)), instrument=True)

    metrics = by_name(capture.got[0])
    assert metrics["http.server.request.duration"].data.data_points[0].sum == 0.25
    assert metrics["streaminfer.services"].data.data_points[0].value == 1
    requests = metrics["streaminfer.requests"]
    assert requests.data.is_monotonic
    assert [(point.value, point.attributes["outcome"]) for point in requests.data.data_points] == [(1, "ok")]
    assert metrics["streaminfer.slo.threshold"].unit == "s"
    assert metrics["streaminfer.slo.budget_remaining"].unit == "1"
    assert capture.closed


def test_sdk_is_not_called_per_request(monkeypatch):
    """The SDK gets no measurement while requests are served, and every request when it collects."""
    capture, measured = Capture(), []
    consume = SynchronousMeasurementConsumer.consume_measurement

    def count(consumer, measurement):
        measured.append(measurement)
        consume(consumer, measurement)

    async def main(loop):
        layers = si.Telemetry("faces"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.005)
        async with si.Stack(*layers, clock=loop.clock) as stack:
            wrapped = StackMetricExporter(capture, stack)
            provider = MeterProvider([PeriodicExportingMetricReader(wrapped, export_interval_millis=float("inf"))])
            wrapped.attach(provider)
            own = provider.get_meter("mine").create_counter("mine")
            monkeypatch.setattr(SynchronousMeasurementConsumer, "consume_measurement", count)
            await asyncio.gather(*(stack(float(number)) for number in range(10)))
            while_serving = len(measured)
            own.add(1)
            provider.force_flush()
            provider.shutdown()
            return while_serving

    assert run(main) == 0
    assert len(measured) == 1  # the one of the counter, which shows that the patch sees measurements
    [point] = by_name(capture.got[0])["streaminfer.request.duration"].data.data_points
    assert point.count == 10


def test_names_and_units_follow_opentelemetry():
    """Names are lower-case words under ``streaminfer.`` and do not repeat the unit, which is of UCUM."""
    for metric in (STACK_STATE, *(metric for listed in METRICS.values() for metric in listed)):
        assert re.fullmatch(r"streaminfer(\.[a-z0-9]+(_[a-z0-9]+)*)+", metric.opentelemetry), metric.name
        assert metric.ucum in {"s", "By", "1"}
        assert not metric.opentelemetry.endswith(("_seconds", "_bytes", "_total", "_ratio"))
        assert (metric.ucum == "s") == metric.prometheus.removesuffix("_total").endswith("_seconds")


def test_otlp_round_trip_keeps_every_number():
    """A receiver on loopback gets the buckets, decoded by OpenTelemetry's own classes."""
    capture, found = Capture(), telemetry("faces", DURATIONS_S["lognormal"][:10_000])
    exported(capture, found)
    with Receiver() as receiver:
        exported(OTLPMetricExporter(endpoint=receiver.endpoint, insecure=True), found)

    [request] = receiver.requests
    metrics = {m.name: m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}
    [got] = metrics["streaminfer.request.duration"].exponential_histogram.data_points
    [sent] = by_name(capture.got[0])["streaminfer.request.duration"].data.data_points
    assert (got.count, got.scale, got.positive.offset) == (sent.count, sent.scale, sent.positive.offset)
    assert list(got.positive.bucket_counts) == sent.positive.bucket_counts
    assert len(encode_metrics(capture.got[0]).SerializeToString()) > 1000


def traced(provider, ratio=1.0, requests=3, around=None, **settings):
    """Serve requests in one batch; return the statistics of its `Tracing` and the collected families."""
    tracing = Tracing(provider.get_tracer("test"), ratio=ratio)

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, max_queue_delay_s=0.01, policy="greedy")
        model = ScriptedBackend(duration_s=0.005, **settings)
        async with si.Stack(si.Telemetry("faces"), tracing, batcher, model, clock=loop.clock) as stack:

            async def one(x):
                if around is None:
                    return await stack(x, key=b"secret-key", subject="secret-subject")
                with around():
                    return await stack(x)

            await asyncio.gather(*(one(float(n)) for n in range(requests)), return_exceptions=True)
            collection = Collection(HistogramReader())
            collection.add("faces", [stack])
            return collection.families

    families = run(main)
    return tracing.statistics(), families


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans):
    found = TracerProvider(sampler=ALWAYS_ON)
    found.add_span_processor(SimpleSpanProcessor(spans))
    yield found
    found.shutdown()


def test_requests_of_a_batch_link_to_its_span(provider, spans):
    """Each request has a span, and all of them link to one span of the batch, whose parent is one of them."""
    traced(provider)

    finished = spans.get_finished_spans()
    [batch] = [span for span in finished if span.name == "streaminfer.batch"]
    requests = [span for span in finished if span.name == "streaminfer.request"]
    assert len(requests) == 3
    assert {link.context.span_id for span in requests for link in span.links} == {batch.context.span_id}
    assert batch.parent.span_id in {span.context.span_id for span in requests}
    for span in requests:
        assert span.attributes["streaminfer.batch.size"] == 3
        assert span.start_time <= batch.start_time < batch.end_time <= span.end_time
        assert (batch.end_time - batch.start_time) / 1e9 == pytest.approx(0.005, abs=1e-4)
    assert "secret" not in "".join(span.to_json() for span in finished)


def test_pause_between_clocks_shifts_no_request_span(provider, spans, monkeypatch):
    """A pause between the reads of two clocks does not shift a request against its batch.

    The spans of requests that end in one turn of the loop are made one after the other, each a little later.
    """
    read = itertools.count(1_795_894_454_000_000_000, 20_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: next(read))
    traced(provider)

    finished = spans.get_finished_spans()
    [batch] = [span for span in finished if span.name == "streaminfer.batch"]
    for span in finished:
        assert span.start_time <= batch.start_time < batch.end_time <= span.end_time


def test_failed_request_has_an_error_span(provider, spans):
    """The span of a failed request has the class of its error, but not its text."""
    traced(provider, requests=1, then=lambda batch: [ValueError("secret input")])

    [span] = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"]
    assert "secret" not in span.to_json()


def test_a_span_has_the_outcome_that_telemetry_counts(provider, spans):
    """Responses, errors and cancelled callers have the same outcome in traces and metrics."""
    counting = si.Telemetry("faces")
    backend = ScriptedBackend([1.0], OSError(), HANG, duration_s=0.01)

    async def main(loop):
        layers = [counting, Tracing(provider.get_tracer("test")), si.AdaptiveBatcher(max_batch_size=1)]
        async with si.Stack(*layers, backend, clock=loop.clock) as stack:
            await stack(1.0)
            with pytest.raises(si.BackendError):
                await stack(1.0)
            leaving = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.005)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    run(main)

    requests = [span for span in spans.get_finished_spans() if span.name == "streaminfer.request"]
    outcomes = [span.attributes["streaminfer.outcome"] for span in requests]
    assert outcomes == ["ok", "BackendError", "cancelled"]
    assert dict(counting.statistics().outcomes) == dict.fromkeys(outcomes, 1)


@pytest.mark.parametrize(
    ("error", "kind", "runs"), [(si.Overloaded("full"), "Overloaded", 1), (OSError(), "BackendError", 3)]
)
def test_requests_of_a_failed_batch_link_to_its_span(provider, spans, error, kind, runs):
    """A failed batch has a span, and so has each part of it that was sent again; its requests link to them."""

    def fail(batch):
        raise error

    traced(provider, then=fail)

    finished = spans.get_finished_spans()
    batches = {span.context.span_id: span for span in finished if span.name == "streaminfer.batch"}
    requests = [span for span in finished if span.name == "streaminfer.request"]
    assert len(requests) == 3
    assert len(batches) == runs
    for span in requests:
        [link] = span.links
        batch = batches[link.context.span_id]
        assert span.attributes["error.type"] == kind
        assert span.attributes["streaminfer.batch.size"] == batch.attributes["streaminfer.batch.size"]
        assert span.start_time <= batch.start_time < batch.end_time <= span.end_time


def test_caller_decides_about_its_requests(provider, spans):
    """A request inside a sampled span has a child span; a request inside a span that is not sampled has none."""
    tracer = provider.get_tracer("server")
    traced(provider, ratio=0.0, requests=2, around=lambda: tracer.start_as_current_span("http"))

    finished = {span.context.span_id: span for span in spans.get_finished_spans()}
    parents = [finished[span.parent.span_id].name for span in finished.values() if span.name == "streaminfer.request"]
    assert parents == ["http", "http"]

    spans.clear()
    silent = TracerProvider(sampler=ALWAYS_OFF).get_tracer("server")
    statistics, _ = traced(provider, requests=2, around=lambda: silent.start_as_current_span("http"))
    assert (statistics.requests, spans.get_finished_spans()) == (0, ())


def test_unsampled_request_creates_no_span(provider, spans):
    """A request that is not sampled has no token, no span and no exemplar."""
    tracing = Tracing(provider.get_tracer("test"), ratio=0.0)

    assert tracing.enter(si.Request(1.0), 5) is None
    statistics, _ = traced(provider, ratio=0.0)

    assert (statistics.requests, statistics.batches, statistics.exemplars) == (0, 0, ())
    assert spans.get_finished_spans() == ()


def test_latency_has_traced_requests_as_exemplars(provider, spans):
    """The exemplar of a stack's latency has the ids and the duration of the span of a traced request."""
    _, families = traced(provider)

    [sample] = next(samples for metric, samples in families.items() if metric.name == "request.duration")
    [exemplar] = sample.value.exemplars  # one per bucket
    [span] = [it for it in spans.get_finished_spans() if trace.format_span_id(it.context.span_id) == exemplar.span_id]
    assert span.name == "streaminfer.request"
    assert trace.format_trace_id(span.context.trace_id) == exemplar.trace_id
    assert exemplar.value_s == pytest.approx((span.end_time - span.start_time) / 1e9)


def test_exemplars_reach_an_otlp_receiver(provider, spans):
    """The points of the latency carry the ids of the spans of traced requests."""
    tracing = Tracing(provider.get_tracer("test"))

    async def main(loop):
        layers = si.Telemetry("faces"), tracing, ScriptedBackend(duration_s=0.005)
        async with si.Stack(*layers, clock=loop.clock) as stack:
            await stack(1.0)
            with Receiver() as receiver:
                exported(OTLPMetricExporter(endpoint=receiver.endpoint, insecure=True), stack)
            return receiver.requests

    [request] = run(main)
    metrics = {m.name: m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}
    [point] = metrics["streaminfer.request.duration"].exponential_histogram.data_points
    [exemplar] = point.exemplars
    [span] = [span for span in spans.get_finished_spans() if span.name == "streaminfer.request"]
    assert exemplar.as_double == pytest.approx(0.005, abs=1e-4)
    assert int.from_bytes(exemplar.span_id, "big") == span.context.span_id
    assert int.from_bytes(exemplar.trace_id, "big") == span.context.trace_id


def test_failing_span_processor_costs_no_response(caplog):
    """A span processor that fails costs no request its response.

    The SDK passes the exception of a custom processor or sampler to the code that makes a span.
    """

    class Broken(SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise RuntimeError("no disk space")

    provider = TracerProvider(sampler=ALWAYS_ON)
    provider.add_span_processor(Broken())
    tracing = Tracing(provider.get_tracer("test"))

    async def main(loop):
        async with si.Stack(tracing, ScriptedBackend(), clock=loop.clock) as stack:
            return [await stack(x) for x in (1.0, 2.0)]

    assert len(run(main)) == 2
    assert len(caplog.records) == 1
    assert "no disk space" in caplog.text


def test_old_batches_are_forgotten(provider):
    """At most 256 spans of batches are kept for links."""
    tracing = Tracing(provider.get_tracer("test"))
    for number in range(300):
        timings = Timings(number, number, number + 1, number + 2, 1)
        response = si.Response(1.0, False, "m", timings)
        tracing.exit(si.Request(1.0), tracing.enter(si.Request(1.0), number), response, number + 3)

    assert len(tracing._batches) <= 256


def test_spans_reach_an_otlp_receiver():
    """A receiver on loopback gets spans with their links."""
    with Receiver() as receiver:
        found = TracerProvider(sampler=ALWAYS_ON)
        found.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=receiver.endpoint, insecure=True)))
        traced(found, requests=1)
        found.shutdown()

    got = [
        span for request in receiver.requests for r in request.resource_spans for s in r.scope_spans for span in s.spans
    ]
    assert {span.name for span in got} == {"streaminfer.request", "streaminfer.batch"}
    assert [len(span.links) for span in got if span.name == "streaminfer.request"] == [1]


def test_ratio_must_be_a_share():
    """A ratio that is not from 0 to 1 is an error."""
    with pytest.raises(ValueError, match="ratio"):
        Tracing(ratio=1.5)
