"""Latency and outcomes by tenant, route and priority."""

import asyncio
import math
from types import SimpleNamespace

import pytest

import streaminfer as si
from streaminfer.telemetry.exporters.collection import Collection
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.prometheus.text_formats import write_text
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled


def model(duration_s=0.010):
    return ScriptedBackend(then=lambda batch: list(batch.inputs), duration_s=lambda rows: duration_s)


def stack(loop, telemetry, backend=None):
    return si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=4), backend or model(), clock=loop.clock)


def by_labels(telemetry):
    return {tuple(dict(each.labels).values()): each for each in telemetry.statistics().labeled}


async def test_each_tenant_has_its_latency(loop):
    telemetry = si.Telemetry("faces", labels=("tenant", "priority"))
    async with stack(loop, telemetry) as service:
        await asyncio.gather(*(service(1.0, tenant="a") for _ in range(4)))
        await asyncio.gather(*(service(1.0, tenant="b", priority=2) for _ in range(8)))
        await service(1.0)
    found = by_labels(telemetry)
    assert {values: dict(each.outcomes) for values, each in found.items()} == {
        ("a", "0"): {"ok": 4},
        ("b", "2"): {"ok": 8},
        ("", "0"): {"ok": 1},
    }
    assert found["a", "0"].latency.quantile(0.99) == pytest.approx(0.010, rel=0.01)
    assert found["b", "2"].latency.quantile(0.99) == pytest.approx(0.020, rel=0.01)
    assert telemetry.statistics().outcomes == {"ok": 13}
    assert sum(each.requests for each in found.values()) == 13


async def test_route_is_that_of_the_response(loop):
    """The route of a response is the name of the outermost route, without its reason and inner sources."""
    telemetry = si.Telemetry("faces", labels=("route",))
    routes = si.FallbackRouter(
        si.Route("large", si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(then=_fail))),
        si.Route("small", si.Stack(si.AdaptiveBatcher(max_batch_size=4), model(0.001)), quality=0.5),
    )
    async with si.Stack(telemetry, routes, clock=loop.clock) as service:
        first = await service.call(si.Request(1.0))
    assert first.source.startswith("small")
    assert first.source != "small"
    assert {values: dict(each.outcomes) for values, each in by_labels(telemetry).items()} == {
        ("small",): {"degraded": 1}
    }


async def test_cached_responses_have_a_route_of_their_own(loop):
    telemetry = si.Telemetry("faces", labels=("route",))
    layers = [telemetry, si.EdgeCache(), si.AdaptiveBatcher(max_batch_size=4)]
    async with si.Stack(*layers, model(), clock=loop.clock) as service:
        await service(1.0)
        await service(1.0)
    assert {values: each.requests for values, each in by_labels(telemetry).items()} == {
        ("ScriptedBackend",): 1,
        ("cache",): 1,
    }


def _fail(batch):
    raise RuntimeError("broken")


async def test_requests_without_a_response_have_no_route(loop):
    telemetry = si.Telemetry("faces", labels=("tenant", "route"))
    async with stack(loop, telemetry, ScriptedBackend(then=_fail)) as service:
        with pytest.raises(si.BackendError):
            await service(1.0, tenant="a")
        cancelled = asyncio.ensure_future(service(1.0, tenant="b"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
    found = by_labels(telemetry)
    assert dict(found["a", ""].outcomes) == {"BackendError": 1}
    assert dict(found["b", ""].outcomes) == {"cancelled": 1}
    assert found["a", ""].latency.count == 0


async def test_sets_beyond_the_bound_are_other(loop):
    telemetry = si.Telemetry("faces", labels=("tenant", "route"), max_label_sets=2)
    async with stack(loop, telemetry) as service:
        for tenant in "abcde":
            await service(1.0, tenant=tenant)
    found = by_labels(telemetry)
    assert {values: each.requests for values, each in found.items()} == {
        ("a", "ScriptedBackend"): 1,
        ("b", "ScriptedBackend"): 1,
        ("other", "other"): 3,
    }


async def test_tenant_called_other_shares_the_label(loop):
    """Each set of labels has one series, also if a tenant has the name that sets beyond the bound share."""
    telemetry = si.Telemetry("faces", labels=("tenant",), max_label_sets=1)
    async with stack(loop, telemetry) as service:
        for tenant in ("other", "a", "b"):
            await service(1.0, tenant=tenant)
        for (shared,) in (telemetry.statistics().labeled, telemetry.live_statistics().labeled):
            assert (shared.labels, dict(shared.outcomes)) == ((("tenant", "other"),), {"ok": 3})
            assert shared.latency.count == 3


async def test_interval_and_reset_count_by_labels(loop):
    telemetry = si.Telemetry("faces", labels=("tenant",))
    async with stack(loop, telemetry) as service:
        await service(1.0, tenant="a")
        telemetry.interval()
        await service(1.0, tenant="b")
        assert [(each.labels, each.requests) for each in telemetry.interval().labeled] == [((("tenant", "b"),), 1)]
        telemetry.reset()
        assert telemetry.statistics().labeled == ()
        await service(1.0, tenant="a")
        (latest,) = telemetry.statistics().labeled
    assert (latest.labels, latest.requests, latest.latency.count) == ((("tenant", "a"),), 1, 1)


async def test_snapshot_has_histograms_of_its_own(loop):
    telemetry = si.Telemetry("faces", labels=("tenant",))
    async with stack(loop, telemetry) as service:
        await service(1.0)
        (before,) = telemetry.statistics().labeled
        (live,) = telemetry.live_statistics().labeled
        await service(1.0)
    assert (before.latency.count, live.latency.count) == (1, 2)


async def test_exporters_have_the_labels(loop):
    telemetry = si.Telemetry("faces", labels=("tenant", "route"))
    async with stack(loop, telemetry) as service:
        await service(1.0, tenant='a"b')
        await service(1.0, tenant="c")
    collection = Collection(HistogramReader())
    collection.add("faces", [service])
    lines = "".join(write_text(collection.families)).splitlines()
    labels = 'service="faces",layer="Telemetry",tenant="a\\"b",route="ScriptedBackend"'
    assert f'streaminfer_requests_labeled_total{{{labels},outcome="ok"}} 1' in lines
    assert f"streaminfer_request_labeled_duration_seconds_count{{{labels}}} 1" in lines
    assert sum(line.startswith("streaminfer_request_labeled_duration_seconds_count") for line in lines) == 2


async def test_table_in_notebooks(loop):
    telemetry = si.Telemetry("faces", labels=("tenant",))
    async with stack(loop, telemetry) as service:
        await service(1.0, tenant="<b>")
        await service(1.0)
    html = telemetry.statistics()._repr_html_()
    assert "by tenant" in html
    assert "&lt;b&gt;" in html
    assert "none" in html
    assert math.isclose(by_labels(telemetry)["",].latency.max, 0.010)


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ("tenant", TypeError, "labels: expected a tuple"),
        ((["tenant"],), TypeError, "labels: expected a tuple"),
        (("tenant", "tenant"), ValueError, "each at most once"),
        (("subject",), ValueError, "'priority'"),
    ],
)
def test_bad_labels_are_named(labels, error, text):
    with pytest.raises(error, match=text):
        si.Telemetry(labels=labels)


def test_bad_bound_is_named():
    for sets in (0, 2**70):
        with pytest.raises(ValueError, match="max_label_sets: expected"):
            si.Telemetry(labels=("tenant",), max_label_sets=sets)


def test_functions_have_no_labels():
    with pytest.raises(TypeError, match="a function has no labels"):
        si.Telemetry(labels=("tenant",)).wrap(len)


async def test_failed_recorder_harms_no_request(loop, caplog):
    """An error of the recorder is logged, and the request gets its response."""
    telemetry = si.Telemetry("faces", labels=("tenant",))
    service = stack(loop, telemetry)
    recorded = telemetry.wrap(service)

    def broken(*args):
        raise ValueError("broken")

    recorded._labeled = SimpleNamespace(answer=broken)
    async with service:
        response = await recorded.call(si.Request(1.0))
    assert response.outputs == 1.0
    assert "a request by labels" in caplog.text
