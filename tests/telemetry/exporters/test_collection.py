"""Collection of metrics from stacks, and the table of metrics."""

import ast
import asyncio
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import streaminfer as si
from streaminfer.telemetry import AlertPair, EventLog, StackCollector, alert_rules, dashboard, metrics_app
from streaminfer.telemetry.cost.statistics import CostRow, CostStatistics
from streaminfer.telemetry.exporters.collection import MAX_LABEL_VALUES, OTHER, Collection
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.names import INNER, METRICS, STACK_STATE
from streaminfer.telemetry.services import name_services
from streaminfer.testing import ScriptedBackend, run

PACKAGE = Path(si.__file__).parent
NOT_EXPORTED = {
    "StackStatistics": None,  # its state and its layers are exported
    "PartStatistics": None,
    "CalibrationStatistics": None,  # about a start, not about serving
    "TelemetryStatistics": {"name", "batch_sizes", "recent"},
    "LabeledStatistics": {"labels"},  # labels of the series
    "WorkerStatistics": {"created_ns", "name"},
    "SloStatistics": {"name", "period_s", "good", "bad", "rejected", "alerts", "callback_errors"},
    "BatcherStatistics": {"batch_sizes", "batches", "calibration"},
    "DeviceStatistics": {
        "background",
        "preemptive",
        "name",
        "number",
        "waiting",
        "memory_bytes",
        "loaded",
    },  # the name is a label; the batchers export the queues
    "BreakerStatistics": {"name"},
    "LimitStatistics": {"name", "adaptive"},
    "RateLimitStatistics": {"name"},
    "RetryStatistics": {"name"},
    "HedgeStatistics": {"name"},
    "ShadowStatistics": {"name"},
    "RouterStatistics": {"requests"},
    "RouteStatistics": {"name"},
    "ReplicaStatistics": {"name", "zone"},
    "TierUsage": {"name"},
    "CostStatistics": {"name", "currency", "devices", "tenants", "streams", "total"},  # sums; names of data subjects
    "SourceStatistics": {"last_error"},
    "StreamStatistics": {"received"},  # the sum of the others
    "TracingStatistics": {"exemplars"},  # exported with the latency
    "TierStatistics": {"name", "last_error"},
    "TritonStatistics": {"recent", "server_error"},
    "ServerStatistics": {"queue_s", "compute_input_s", "compute_infer_s", "compute_output_s"},  # in Telemetry's parts
}
"""Fields of statistics that are no metrics: names are labels; windows and sums can be computed from other metrics."""


@functools.cache
def statistics_classes():
    """Return the fields of each class of statistics in the package, by class name, read from the source."""
    found = {}
    sources = (text for path in PACKAGE.rglob("*.py") if "Snapshot" in (text := path.read_text(encoding="utf-8")))
    for source in sources:
        for node in ast.parse(source).body:
            bases = {base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)}
            if bases & {"Snapshot", "BackendStatistics", "StreamStatistics"} and node.name.endswith(
                ("Statistics", "Usage")
            ):
                fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                found[node.name] = {field.target.id for field in fields if isinstance(field.target, ast.Name)}
    return found


def collect(*stacks):
    """Return the collected values by family and labels."""
    collection = Collection(HistogramReader())
    for service, parts in name_services(stacks):
        collection.add(service, parts)
    return {
        (metric.prometheus, sample.labels): sample.value
        for metric, samples in collection.families.items()
        for sample in samples
    }


def test_no_counter_falls_when_a_padded_batch_ends():
    """No counter falls when a padded batch ends: it would look like a restart, and a rate would count it all again."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=8, preferred_sizes=[1, 8])
        stack = si.Stack(si.CostMeter(per_second=1.0), batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock)
        counters = {metric.prometheus for listed in METRICS.values() for metric in listed if metric.kind == "counter"}
        before = {}
        async with stack:
            calls = asyncio.gather(*(stack(1.0) for _ in range(2)))
            for _ in range(4):
                await asyncio.sleep(0.04)
                now = {key: value for key, value in collect(stack).items() if key[0] in counters}
                assert not [key for key, value in before.items() if now[key] < value]
                before = now
            await calls
        return {dict(labels)["use"]: value for (name, labels), value in before.items() if "bill" in name}

    assert run(main) == pytest.approx({"busy": 0.025, "padding": 0.075, "idle": 0.06}, rel=0.01)


@pytest.mark.parametrize("kind", statistics_classes())
def test_every_statistic_is_exported(kind):
    """Each field of each snapshot is a metric, has inner statistics, or is listed in ``NOT_EXPORTED``."""
    fields = statistics_classes()[kind]
    left_out = NOT_EXPORTED.get(kind, set())
    if left_out is None:
        assert kind not in METRICS
        return

    exported = {field for metric in METRICS[kind] for field in metric.fields}
    inner = {field for field, _ in INNER.get(kind, ())}

    assert fields - exported - inner == left_out
    assert not left_out & (exported | inner)


def test_metric_names_are_unique_and_well_formed():
    """Each metric has its own name, in Prometheus' characters and without a suffix that Prometheus adds."""
    metrics = {STACK_STATE, *(metric for listed in METRICS.values() for metric in listed)}

    assert len({metric.family for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert metric.family.replace("_", "").isalnum()
        assert not metric.family.endswith(("_total", "_created", "_bucket", "_sum", "_count", "_info"))
        assert metric.help.endswith(".")
        assert metric.label or len(metric.fields) == 1


def test_stack_is_collected_with_what_is_inside():
    """Routes, their batchers and shared breakers each appear once, under stable labels."""

    async def main(loop):
        breaker = si.CircuitBreaker(name="model")
        slo = si.SLO("faces", threshold_s=0.050)
        full = si.Stack(si.AdaptiveBatcher(max_batch_size=4), breaker, ScriptedBackend(duration_s=0.001))
        small = si.Stack(si.AdaptiveBatcher(max_batch_size=4), breaker, ScriptedBackend(duration_s=0.001))
        router = si.FallbackRouter(si.Route("full", full), si.Route("small", small, quality=0.5))
        cache = si.EdgeCache(maxsize=10)
        async with si.Stack(si.Telemetry("faces", slo=slo), cache, router, clock=loop.clock) as stack:
            await stack(1.0)
            await stack(1.0)
            return collect(stack)

    found = run(main)

    def value(name, layer, **more):
        return found[name, (("service", "faces"), ("layer", layer), *more.items())]

    assert value("streaminfer_requests_total", "Telemetry", outcome="ok") == 2
    assert value("streaminfer_request_duration_seconds", "Telemetry").total == 2
    assert value("streaminfer_slo_events_total", "Telemetry", slo="faces", result="good") == 2
    assert value("streaminfer_slo_alerts", "Telemetry", slo="faces", severity="page") == 0
    assert value("streaminfer_cache_lookups_total", "EdgeCache", result="hits") == 1
    assert value("streaminfer_cache_computations_total", "EdgeCache", kind="computations") == 1
    assert value("streaminfer_route_attempts_total", "FallbackRouter", route="full", outcome="succeeded") == 1
    assert value("streaminfer_batcher_requests_total", "FallbackRouter/full/AdaptiveBatcher", outcome="succeeded") == 1
    assert value("streaminfer_batcher_rows_total", "FallbackRouter/small/AdaptiveBatcher") == 0
    assert value("streaminfer_stack_state", "FallbackRouter/full", state="running") == 1
    assert value("streaminfer_stack_state", "", state="stopped") == 0
    breakers = [labels for name, labels in found if name == "streaminfer_breaker_permitted_total"]
    assert [dict(labels)["layer"] for labels in breakers] == ["FallbackRouter/full/CircuitBreaker"]


def test_layers_around_one_service_have_own_labels():
    """Two breakers around one function do not share a series."""
    inner = si.CircuitBreaker(name="inner").wrap(ScriptedBackend())
    outer = si.CircuitBreaker(name="outer").wrap(inner)

    found = collect(outer)

    layers = [dict(labels)["layer"] for name, labels in found if name == "streaminfer_breaker_trips_total"]
    assert len(layers) == len(set(layers)) == 2


def test_stacks_sharing_telemetry_have_own_states():
    """Stacks with one telemetry are one service, and each has a state series of its own.

    Two series with the same name and labels would fail the scrape.
    """
    telemetry = si.Telemetry("faces")
    running, new = (si.Stack(telemetry, ScriptedBackend()) for _ in range(2))

    async def main(loop):
        async with running:
            collection = Collection(None)
            for service, parts in name_services([running, new]):
                collection.add(service, parts)
            return collection.families[STACK_STATE]

    states = [(*dict(labels).values(),) for labels, value in run(main) if value]

    assert states == [("faces", "", "running"), ("faces", "#2", "new")]


def test_shared_objective_is_counted_once():
    """Two telemetries with one SLO export its events once."""
    slo = si.SLO("both", threshold_s=0.050)
    slo.record(0.001)

    found = collect(si.Telemetry("a", slo=slo), si.Telemetry("b", slo=slo))

    good = [
        value
        for (name, labels), value in found.items()
        if name == "streaminfer_slo_events_total" and ("result", "good") in labels
    ]
    assert good == [1]


def test_shared_device_is_counted_once():
    """Two stacks whose batchers share a device export its figures once, by model."""

    async def main(loop):
        device = si.Device("gpu:0")
        models = {name: ScriptedBackend(duration_s=0.01) for name in ("faces", "speech")}
        for name, model in models.items():
            model.name = name
        batchers = [si.AdaptiveBatcher(max_batch_size=4, device=device) for _ in models]
        faces, speech = (
            si.Stack(si.Telemetry(name), batcher, model, clock=loop.clock)
            for batcher, (name, model) in zip(batchers, models.items(), strict=True)
        )
        async with faces, speech:
            running = asyncio.ensure_future(faces(1.0))
            await asyncio.sleep(0.005)
            await asyncio.gather(running, faces(1.0), speech(1.0))
            return collect(faces, speech)

    found = run(main)

    def values(name):
        return {labels[3:]: value for (family, labels), value in found.items() if family == name}

    where = (("service", "faces"), ("layer", "AdaptiveBatcher"), ("device", "gpu:0"))
    assert found["streaminfer_device_running", where] == 0
    assert found["streaminfer_device_concurrency", where] == 1
    assert values("streaminfer_device_batches_total") == {(("model", "faces"),): 2, (("model", "speech"),): 1}
    assert values("streaminfer_device_busy_seconds_total") == pytest.approx(
        {(("model", "faces"),): 0.02, (("model", "speech"),): 0.01}
    )
    assert sum(values("streaminfer_device_waits_total").values()) == 1


def test_devices_of_one_name_are_exported_apart():
    """Devices with the same name each have their series, told apart by service and layer."""

    async def main(loop):
        def stack(*layers):
            batcher = si.AdaptiveBatcher(max_batch_size=4, device=si.Device("gpu:0"))
            return si.Stack(*layers, batcher, ScriptedBackend(duration_s=0.01), clock=loop.clock)

        router = si.FallbackRouter(si.Route("full", stack()), si.Route("small", stack(), quality=0.5))
        plates, faces = stack(si.Telemetry("plates")), si.Stack(si.Telemetry("faces"), router, clock=loop.clock)
        async with plates, faces:
            await asyncio.gather(plates(1.0), faces(1.0))
            return Collection.of(name_services([plates, faces]), None).families

    samples = {metric.name: samples for metric, samples in run(main).items()}["device.concurrency"]

    assert [labels for labels, _ in samples] == [
        (("service", service), ("layer", layer), ("device", "gpu:0"))
        for service, layer in (
            ("plates", "AdaptiveBatcher"),
            ("faces", "FallbackRouter/full/AdaptiveBatcher"),
            ("faces", "FallbackRouter/small/AdaptiveBatcher"),
        )
    ]


def test_cost_is_exported_by_model_and_route():
    """Each model and route has a series; tenants and streams have none."""
    row = CostRow(cost=1.5, rows=4, responses=3)
    rows = {"models": {"m": row}, "routes": {"full": row}, "tenants": {"acme": row}, "streams": {"cam": row}}
    cost = CostStatistics(name="", currency="EUR", devices={}, total=row, failed=1, overflowed=0, **rows)

    found = collect(SimpleNamespace(name="meter", statistics=lambda: cost))

    assert {labels[2] for name, labels in found if name.startswith("streaminfer_cost")} == {("currency", "EUR")}
    charged = {labels[3:]: value for (name, labels), value in found.items() if name == "streaminfer_cost_charged_total"}
    assert charged == {(("model", "m"),): 1.5, (("route", "full"),): 1.5}
    assert "acme" not in str(found)


def test_session_is_collected_with_its_stack():
    """A session is collected with its stack, its drops by reason and by stream.

    A session and its stack are one service, in any order, and layers keep their labels.
    """

    async def main(loop):
        layers = si.Telemetry("cameras"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.01)
        async with si.Stack(*layers, clock=loop.clock) as stack:
            session = si.streams.StreamSession(stack, policy=si.streams.EveryNth(2))

            async def source():
                for number in range(4):
                    yield float(number)

            async with session(source(), stream_id="door") as results:
                async for _ in results:
                    while_open = collect(session)
            return session.statistics(), while_open, collect(session), collect(stack, session), collect(session, stack)

    statistics, while_open, alone, *both = run(main)

    def value(found, name, layer, **more):
        return found[name, (("service", "cameras"), ("layer", layer), *more.items())]

    assert statistics.dropped["skipped"] == 2
    assert value(while_open, "streaminfer_stream_dropped_total", "StreamSession", stream="door", reason="skipped") > 0
    for found in (alone, *both):
        assert value(found, "streaminfer_requests_total", "Telemetry", outcome="ok") == statistics.delivered
        assert value(found, "streaminfer_batcher_rows_total", "AdaptiveBatcher") == statistics.delivered
        for reason, count in statistics.dropped.items():
            assert value(found, "streaminfer_session_dropped_total", "StreamSession", reason=reason) == count
        assert value(found, "streaminfer_session_result_age_seconds", "StreamSession").total == statistics.delivered
        assert {dict(labels)["service"] for _, labels in found} == {"cameras"}
        assert found.keys() == alone.keys()


def test_failing_part_hides_no_other_metrics(tmp_path, caplog):
    """A part whose ``statistics()`` raises is left out of each scrape, and its error is logged once."""
    telemetry = si.Telemetry("left in the lurch")
    workers = si.telemetry.WorkerHistograms(tmp_path, telemetry.histograms, name="closed workers")
    workers.close()

    scrapes = [collect(telemetry, workers) for _ in range(2)]

    for found in scrapes:
        assert {dict(labels)["service"] for _, labels in found} == {"left in the lurch"}
    (record,) = caplog.records
    assert "service 'closed workers': statistics() of WorkerHistograms failed: RuntimeError" in record.getMessage()


def test_cancelled_future_costs_no_other_metrics(caplog):
    """A part with a cancelled future does not cost another part its metrics.

    The result of a cancelled future raises `CancelledError`, which does not cancel the scrape.
    """

    async def main(loop):
        future = loop.create_future()
        future.cancel()
        return collect(si.Telemetry("faces"), SimpleNamespace(statistics=future.result))

    found = run(main)

    assert {dict(labels)["service"] for _, labels in found} == {"faces"}
    assert len(caplog.records) == 1


def test_services_with_equal_names_are_numbered():
    """A second service of one name gets a number; a part without a name has that of its class."""
    stacks = [si.Telemetry("a"), si.Telemetry("a"), si.Telemetry(), si.CircuitBreaker(name="b")]

    assert [name for name, _ in name_services(stacks)] == ["a", "a#2", "Telemetry", "b"]


def test_error_label_values_are_bounded():
    """Beyond 64 values of a label, further values share a series, so the sum is complete."""
    telemetry = si.Telemetry("many")
    for number in range(MAX_LABEL_VALUES + 10):
        telemetry.fail(type(f"Error{number}", (Exception,), {})())

    found = {
        dict(labels)["outcome"]: value
        for (name, labels), value in collect(telemetry).items()
        if "requests_total" in name
    }

    assert len(found) == MAX_LABEL_VALUES + 1
    assert found[OTHER] == 10
    assert sum(found.values()) == MAX_LABEL_VALUES + 10


@pytest.mark.parametrize(
    "tenants",
    [("\ud800", "\udfff", "\\ud800", "\\ud800?"), ("x" * 128 + "a", "x" * 128 + "b", "x" * 128)],
    ids=["surrogates", "long"],
)
def test_client_label_is_short_unique_utf_8(tenants):
    """For any name of a client, its label is UTF-8 text of at most 128 characters and differs from other clients'."""
    telemetry = si.Telemetry("faces", labels=("tenant",))

    async def main(loop):
        async with si.Stack(
            telemetry, ScriptedBackend(then=lambda batch: list(batch.inputs)), clock=loop.clock
        ) as stack:
            for tenant in tenants:
                await stack(1.0, tenant=tenant)
            return collect(stack)

    found = [dict(labels)["tenant"] for (name, labels) in run(main) if name == "streaminfer_requests_labeled_total"]

    assert len({text.encode() for text in found}) == len(tenants)
    assert max(map(len, found)) <= 128


@pytest.mark.parametrize("name", ["\ud800", "x" * 200], ids=["surrogate", "long"])
def test_names_of_services_and_routes_are_text(name):
    """For any name of a service, an objective or a route, its label is UTF-8 text of at most 128 bytes."""
    slo = si.SLO(name, threshold_s=0.1)
    router = si.FallbackRouter(si.Route(name, si.Stack(ScriptedBackend())), si.Route("small", ScriptedBackend()))

    found = collect(si.Stack(si.Telemetry(name, slo=slo), router))

    for _, labels in found:
        assert all(len(value.encode()) <= 128 for _, value in labels)
    selected = json.loads(alert_rules(slo).partition(" slo: ")[2].partition("\n")[0])
    assert {dict(labels)["slo"] for name, labels in found if "_slo_" in name} == {selected}


def test_long_windows_have_series_of_their_own():
    """The label of a window has all digits of its seconds, so that long windows do not share a series."""
    pair = AlertPair(2.0, 1_000_001.0, 1_000_000.0)
    found = collect(si.Telemetry("faces", slo=si.SLO("fast", threshold_s=0.1, alert_pairs=[pair])))

    windows = {dict(labels).get("window") for _, labels in found}

    assert windows == {None, "1000000", "1000001"}


@pytest.mark.parametrize(("delay_s", "samples"), [(None, []), (math.nan, []), (math.inf, [math.inf])], ids=str)
def test_unknown_values_are_left_out(delay_s, samples):
    """A value that is ``None`` or NaN is no sample; infinity is one."""
    statistics = attrs.evolve(si.Hedge().statistics(), delay_s=delay_s)

    found = collect(SimpleNamespace(statistics=lambda: statistics))

    assert "streaminfer_hedge_requests_total" in {name for name, _ in found}
    assert [value for (name, _), value in found.items() if name == "streaminfer_hedge_delay_seconds"] == samples


@pytest.mark.parametrize("export", [metrics_app, StackCollector, EventLog, dashboard])
@pytest.mark.parametrize(
    "of", [lambda stack: [stack], lambda stack: stack.statistics(), lambda _: si.Telemetry, lambda _: 3]
)
def test_objects_without_statistics_are_an_error(export, of):
    """Objects without statistics are an error, because their page would have no metric."""
    with pytest.raises(TypeError, match="stacks: expected Stacks"):
        export(of(si.Stack(ScriptedBackend())))


@pytest.mark.parametrize("export", [metrics_app, StackCollector, EventLog, dashboard])
def test_export_without_a_stack_is_an_error(export):
    """An export without a stack is an error, because its page would have no metric."""
    with pytest.raises(TypeError, match="stacks: expected at least one Stack, got none"):
        export()
