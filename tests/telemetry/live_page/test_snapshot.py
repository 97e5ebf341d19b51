"""Snapshots of stacks for the live page: panels, labels and numbers, without any data of requests."""

import asyncio
import json
import math

import attrs
import pytest

import streaminfer as si
from streaminfer.protocols import Node
from streaminfer.telemetry.live_page.panels import PANELS
from streaminfer.telemetry.live_page.snapshot import ServiceReader
from streaminfer.testing import ScriptedBackend

SECOND = 10**9


def model(duration_s=0.01):
    return ScriptedBackend(then=lambda batch: list(batch.inputs), duration_s=lambda rows: duration_s)


def service(loop, name="faces"):
    routes = si.FallbackRouter(
        si.Route("large", si.Stack(si.AdaptiveBatcher(max_batch_size=4, slo_s=0.05), si.CircuitBreaker(), model())),
        si.Route("small", si.Stack(si.AdaptiveBatcher(max_batch_size=8), model(0.001)), quality=0.5),
    )
    slo = si.SLO("fast", threshold_s=0.05)
    return si.Stack(si.Telemetry(name, slo=slo), si.EdgeCache(), si.ConcurrencyLimit(), routes, clock=loop.clock)


async def test_every_part_of_a_stack_has_its_panel(loop):
    async with service(loop) as stack:
        reader = ServiceReader([stack])
        first = reader.read(loop.clock())
        await asyncio.gather(*[stack(float(number % 5)) for number in range(10)])
        early = reader.read(loop.clock())
        half = reader.read(loop.clock() + SECOND // 2)
        read = reader.read(loop.clock() + 2 * SECOND)
    assert early["queue"].keys() == first["queue"].keys()  # queues are read at each update
    assert "requests" not in early  # requests are read twice a second
    assert half["requests"] == read["requests"]
    assert "parts" not in half  # parts are read every two seconds
    assert "tail" in first
    assert list(read) == [panel.id for panel in PANELS if panel.id in read]
    assert read["requests"] == {"ok": 10}
    assert read["tail"]["p99"] == pytest.approx(0.020, rel=0.01)
    assert list(read["parts"]) == ["queue", "assembly", "inference", "delivery"]
    assert read["parts"]["inference"] == pytest.approx(0.010, rel=0.01)
    assert read["queue"]["in flight"] == 0
    assert read["queue"]["large: queued"] == 0
    assert sum(read["batches"].values()) >= 2
    assert read["batch_size"]["large: mean"][0] == 5
    assert read["routes"] == {"large": 1.0, "small": 1.0}
    assert read["budget"] == {"fast": 1.0}
    assert read["cache"]["hits"] + read["cache"]["misses"] >= 5
    assert read["other"]["large: CircuitBreaker: state"] == "closed"
    assert json.loads(json.dumps(read))


def test_each_update_of_half_a_second_reads_charts():
    """Updates every half a second all read the counters, also where one comes sooner after a late one."""
    telemetry = si.Telemetry("faces")
    count = telemetry.wrap(lambda: None)
    reader = ServiceReader([si.Stack(telemetry, model())])
    read = []
    for late_s in (0.02, 0.001, 0.01, 0.0):
        count()
        read.append(reader.read(round((len(read) / 2 + late_s) * SECOND))["requests"]["ok"])
    assert read == [1, 2, 3, 4]


async def test_drops_are_by_reason(loop):
    batcher = si.AdaptiveBatcher(max_batch_size=1, slo_s=0.05, max_queue_size=2)
    async with si.Stack(batcher, model(0.03), clock=loop.clock) as stack:
        await asyncio.gather(*[stack(float(number)) for number in range(9)], return_exceptions=True)
        read = ServiceReader([stack]).read(loop.clock())
    rejected = dict(batcher.statistics().rejected)
    assert rejected
    assert rejected.items() <= read["drops"].items()
    assert "tail" not in read


async def test_a_shared_device_has_panels(loop):
    device = si.Device("gpu:0")
    backends = [model(), model()]
    backends[0].name, backends[1].name = "faces", "speech"
    stacks = [si.Stack(si.AdaptiveBatcher(max_batch_size=4, device=device), it, clock=loop.clock) for it in backends]
    async with stacks[0], stacks[1]:
        await asyncio.gather(*[stack(1.0) for stack in stacks])
        read = ServiceReader(stacks).read(loop.clock())
    assert read["device"] == pytest.approx({"gpu:0, faces": 0.01, "gpu:0, speech": 0.01})


async def test_panels_show_no_request_data(loop):
    """Tenants, subjects, streams and keys of requests are in no label and no number."""
    limit = si.RateLimit(100.0)
    stack = si.Stack(si.Telemetry("t"), si.EdgeCache(), limit, si.AdaptiveBatcher(max_batch_size=4), model())
    async with stack:
        await stack(
            "secret-payload", tenant="secret-tenant", subject="secret-subject", key="secret-key", tags=["secret"]
        )
        await stack("secret-other", tenant="secret-tenant", stream_id="secret-stream")
        read = ServiceReader([stack]).read(loop.clock())
    assert "secret" not in json.dumps(read)


@attrs.frozen
class Unknown:
    count: int = 3
    mean_age_s: float = float("nan")
    busy: bool = True
    label: str = "secret"
    by_stream: dict = attrs.field(factory=lambda: {"secret": 1})


class UserLayer(Node):
    name = "mine"

    def __init__(self, statistics):
        self.take = statistics

    def statistics(self):
        return self.take()


class Parent(Node):
    def __init__(self, **children):
        self.inside = children

    @property
    def children(self):
        return self.inside

    async def call(self, request):
        raise NotImplementedError


def test_unknown_statistics_show_their_numbers():
    read = ServiceReader([Parent(a=UserLayer(Unknown), inner=UserLayer(object))]).read(0)
    assert read.keys() == {"other"}
    assert math.isnan(read["other"].pop("a: mine: mean age s"))
    assert read["other"] == {"a: mine: count": 3, "a: mine: busy": True}


async def test_streams_and_cost_have_panels(loop):
    """A session and a cost meter have panels of their own, which do not name streams and tenants."""
    meter = si.CostMeter(per_second=1.0, currency="EUR")
    stack = si.Stack(meter, si.AdaptiveBatcher(max_batch_size=4), model(0.01), clock=loop.clock)

    async def source():
        for number in range(4):
            await asyncio.sleep(0.02)
            yield float(number)

    async with stack:
        session = si.streams.StreamSession(stack, policy=si.streams.EveryNth(2))
        async with session(source(), stream_id="secret-stream") as results:
            async for _ in results:
                pass
        await stack(1.0, tenant="secret-tenant")
        read = ServiceReader([session, stack]).read(loop.clock())
    bill = meter.statistics()
    assert read["streams"] == {"open": 0, "frames waiting": 0, "frames in flight": 0}
    assert {label: count for label, count in read["frames"].items() if count} == {"skipped": 2, "delivered": 2}
    assert read["age"] == {"p99": pytest.approx(0.01, rel=0.01)}
    assert read["cost"] == pytest.approx(
        {"all, EUR": bill.per_1000_on_time, "ScriptedBackend, EUR": bill.routes["ScriptedBackend"].per_1000_on_time}
    )
    assert read["bill"] == pytest.approx({"busy": 0.03 / bill.bill, "padding": 0.0, "idle": 1.0 - 0.03 / bill.bill})
    assert "secret" not in json.dumps(read)


def test_non_service_object_shows_its_own_statistics():
    assert list(ServiceReader([UserLayer(Unknown)]).read(0)["other"]) == [
        "mine: count",
        "mine: mean age s",
        "mine: busy",
    ]


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_failing_layer_blanks_no_panel(caplog, error):
    def fail():
        raise error

    reader = ServiceReader([Parent(a=UserLayer(fail), b=UserLayer(Unknown))])
    for turn in range(3):
        read = reader.read(turn)
    assert read["other"]["mine: statistics"] == "not readable"
    assert read["other"]["b: mine: count"] == 3
    assert len(caplog.records) == 1


def test_labels_are_bounded():
    many = Parent(**{f"r{number}": UserLayer(Unknown) for number in range(200)})
    assert len(ServiceReader([many]).read(0)["other"]) == 200


def test_new_layers_are_found():
    parent = Parent(a=UserLayer(Unknown))
    reader = ServiceReader([parent])
    reader.read(0)
    parent.inside["b"] = UserLayer(Unknown)
    assert len(reader.read(SECOND)["other"]) == 3
    assert len(reader.read(2 * SECOND)["other"]) == 6
