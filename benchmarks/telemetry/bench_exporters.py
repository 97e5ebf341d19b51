"""Exporters: ``python benchmarks/run.py exporters``.

* CPU of a scrape of 50 services with 3 histograms of 200,000 durations each, in each format, over the exposition of
  ``prometheus_client`` with the same series, in the same run.
* Bytes of a native series.
* p99 that Debian's Prometheus computes from our native histograms, over ours: one server, and two merged.
* CPU of a request with exporters attached, over the same stack without.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import prometheus_client.openmetrics.exposition
from _lib.figures import Figure
from _lib.floor import cpu_per_request
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
from opentelemetry.sdk.trace import TracerProvider
from servers.asgi_server import AsgiServer, request
from servers.prometheus_server import PROMETHEUS, PrometheusServer

import streaminfer as si
from streaminfer.telemetry import EventLog, StackMetricExporter, Tracing
from streaminfer.telemetry.exporters.collection import Collection
from streaminfer.telemetry.exporters.histogram_points import BOUNDS_S, HistogramReader
from streaminfer.telemetry.exporters.prometheus.protobuf_format import write_protobuf

SERVICES, HISTOGRAMS, DURATIONS = 50, 3, 200_000
ROUNDS = 30
PROTOBUF = "application/vnd.google.protobuf"
OPENMETRICS = "application/openmetrics-text"
SCRAPE = Figure("CPU of a scrape of 50 services with 3 histograms each", form="{:.1f} ms", at_most=5)
SCRAPE_OVER_PEER = Figure(
    "CPU of a scrape with native histograms", over="`prometheus_client`'s plain text without them"
)
SERIES = Figure("bytes of a series of a native histogram", form="{:,.0f}", at_most=1024)
QUANTILE = Figure("p99 of a real Prometheus off our own, worst of 50 services", form="{:.2f} %", at_most=0.5)
ADDED = Figure("CPU that exporters add to a request", form="{:.2f} µs")


def telemetries(scale: float = 1.0) -> list[si.Telemetry]:
    rng = np.random.default_rng(0)
    found = [si.Telemetry(f"service-{number}") for number in range(SERVICES)]
    for telemetry in found:
        for histogram in telemetry._histograms[:HISTOGRAMS]:
            histogram.record_many(rng.lognormal(-4.0, 0.5, DURATIONS) * scale)
    return found


def peer() -> prometheus_client.CollectorRegistry:
    registry = prometheus_client.CollectorRegistry()
    names = ("request", "queue", "inference")
    histograms = [
        prometheus_client.Histogram(f"{name}_seconds", name, ["service"], buckets=BOUNDS_S, registry=registry)
        for name in names
    ]
    for number in range(SERVICES):
        for histogram in histograms:
            histogram.labels(f"service-{number}").observe(0.02)
    return registry


def bench_scrape(found: list[si.Telemetry]) -> None:
    openmetrics: Any = prometheus_client.openmetrics.exposition  # the module has no types
    app, registry = si.telemetry.metrics_app(*found), peer()
    loop = asyncio.new_event_loop()
    peers = "prometheus_client, plain text"

    def scrape(accept: str, *more: tuple[str, str]) -> bytes:
        return loop.run_until_complete(request(app, headers=[("Accept", accept), *more]))[2]

    ways: dict[str, Callable[[], bytes]] = {
        "protobuf": lambda: scrape(PROTOBUF),
        "protobuf with gzip": lambda: scrape(PROTOBUF, ("Accept-Encoding", "gzip")),
        "OpenMetrics": lambda: scrape(OPENMETRICS),
        "plain text": lambda: scrape("text/plain"),
        "plain text with gzip": lambda: scrape("text/plain", ("Accept-Encoding", "gzip")),
        peers: lambda: prometheus_client.generate_latest(registry),
        "prometheus_client, OpenMetrics": lambda: openmetrics.generate_latest(registry),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    sizes = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            sizes[name] = len(way())
            times[name].append((time.process_time() - began) * 1e3)
    print(f"scrape of {SERVICES} services × {HISTOGRAMS} histograms, ms of CPU, {ROUNDS} rounds:")
    for name, taken in times.items():
        low, middle, high = np.quantile(taken, [0.0, 0.5, 0.9])
        print(f"  {name:35} least {low:6.2f}  median {middle:6.2f}  p90 {high:6.2f}  {sizes[name] / 1024:7.1f} KiB")
    for name in ("protobuf", "plain text", "plain text with gzip"):
        SCRAPE.report(times[name], case=name)
        SCRAPE_OVER_PEER.report([own / base for own, base in zip(times[name], times[peers], strict=True)], case=name)
    loop.close()
    collection = Collection(HistogramReader())
    collection.add(found[0].name, [found[0]])
    latency = {metric: samples for metric, samples in collection.families.items() if metric.name == "request.duration"}
    size = len(b"".join(write_protobuf(latency)))
    theirs = sizes[peers] / (SERVICES * HISTOGRAMS)
    SERIES.report(size, note=f"`prometheus_client`'s plain text, without native histograms, {theirs:,.0f}")


def bench_prometheus(first: list[si.Telemetry], second: list[si.Telemetry]) -> None:
    if PROMETHEUS is None:
        print("p99 through Prometheus: left out, since Prometheus is not installed (apt-get install prometheus)")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        AsgiServer(si.telemetry.metrics_app(*first)) as one,
        AsgiServer(si.telemetry.metrics_app(*second)) as other,
        PrometheusServer(Path(folder), [one, other]) as server,
    ):
        family = "streaminfer_request_duration_seconds"
        single = server.query(f'histogram_quantile(0.99, {family}{{instance="{one.address}"}})')
        merged = server.query(f"histogram_quantile(0.99, sum by (service) ({family}))")
    errors, merged_errors = [], []
    for telemetry, twin in zip(first, second, strict=True):
        ours = telemetry._histograms[0].copy()
        errors.append(abs(single[telemetry.name] / ours.quantile(0.99) - 1))
        ours.merge(twin._histograms[0])
        merged_errors.append(abs(merged[telemetry.name] / ours.quantile(0.99) - 1))
    QUANTILE.report(100 * max(errors), case="one server")
    QUANTILE.report(100 * max(merged_errors), case="two merged servers")


def bench_requests() -> None:
    def stack(*layers: Any) -> si.Stack:
        model = si.CpuBackend(np.copy, executor="inline")
        return si.Stack(si.Telemetry("faces"), *layers, si.AdaptiveBatcher(max_batch_size=32), model)

    def attach(made: si.Stack) -> list[Any]:
        otel = StackMetricExporter(ConsoleMetricExporter(), made)
        return [si.telemetry.metrics_app(made), EventLog(made), otel]

    async def cpu(made: si.Stack, *, attached: bool) -> float:
        async with made:
            exporters = attach(made) if attached else []
            seconds = await cpu_per_request(made, callers=32, requests=20_000)
            del exporters
            return seconds

    silent = TracerProvider().get_tracer("bench")
    kinds: dict[str, Callable[[], Any]] = {
        "without exporters": lambda: cpu(stack(), attached=False),
        "metrics app, event log and OpenTelemetry exporter": lambda: cpu(stack(), attached=True),
        "exporters and tracing that samples nothing": lambda: cpu(stack(Tracing(silent, ratio=0.0)), attached=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(7):
        for name, kind in kinds.items():
            taken[name].append(asyncio.run(kind()) * 1e6)
    bare = taken.pop("without exporters")
    print(f"CPU of a request without exporters: {statistics.median(bare):.2f} µs ({min(bare):.2f})")
    for name, values in taken.items():
        ADDED.report([value - base for value, base in zip(values, bare, strict=True)], case=name)


if __name__ == "__main__":
    first = telemetries()
    bench_scrape(first)
    bench_prometheus(first, telemetries(1.3))
    bench_requests()
