"""Measurements of running services, and the placement problem with these measurements."""

import asyncio
import math

import attrs
import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import ServiceTime
from streaminfer.placement.acting.live import RttMeter, with_measurements
from streaminfer.placement.distribution import Distribution
from streaminfer.placement.network.rtt_samples import END_TO_END, RttSamples
from streaminfer.placement.problem import (
    DeviceGroup,
    Link,
    Model,
    Problem,
    ServiceClass,
    Shard,
    Site,
    UserCluster,
    Variant,
)
from streaminfer.testing import ScriptedBackend


class Remote:
    """Service at the end of a line with a round trip of 30 ms."""

    def __init__(self, stack):
        self.inner = stack

    async def start(self):
        await self.inner.start()

    async def stop(self, *, drain=True):
        await self.inner.stop(drain=drain)

    async def call(self, request):
        await asyncio.sleep(0.015)
        response = await self.inner.call(request)
        await asyncio.sleep(0.015)
        return response


@pytest.fixture
def problem():
    return Problem(
        clusters=(UserCluster(name="Lyon", rates=10.0, access="end to end", service_class="live", model="faces"),),
        sites=(Site(name="Paris", devices=(DeviceGroup(kind="cpu", slots=4),)),),
        models=(
            Model(
                name="faces",
                variants=(Variant(name="fp32", shards=(Shard(service_time={"cpu": ServiceTime.affine(0.1, 0.1)}),)),),
            ),
        ),
        access=(END_TO_END,),
        service_classes=(ServiceClass(name="live", slo_s=0.2),),
        links={"Lyon": {"Paris": Link(rtt=Distribution.of(9.0), bandwidth_bytes_s=1e6)}},
    )


async def test_meter_subtracts_the_service_time(loop):
    """A response after 70 ms, of which the model took 40 ms, has a round trip of 30 ms; an error is not measured."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy")
    site = si.Stack(batcher, ScriptedBackend(ValueError("bad"), duration_s=0.04))
    meter = RttMeter("Lyon", "Paris")

    async with si.Stack(meter, Remote(site), clock=loop.clock) as service:
        with pytest.raises(si.BackendError):
            await service(1.0)
        await service(1.0)
        await service(1.0)

    assert meter.rtt_s == pytest.approx([0.03, 0.03])
    assert RttMeter.samples([meter]).rtt_s["Lyon"]["Paris"] == pytest.approx([0.03, 0.03])
    assert repr(meter) == "<RttMeter: Lyon to Paris, 2 measurements>"


@pytest.mark.parametrize(("served_s", "expected"), [(lambda _: 0.01, [0.02]), (None, [])], ids=["header", "unknown"])
async def test_meter_reads_the_service_time_of_the_site(loop, served_s, expected):
    """The meter subtracts the time that `served_s` returns; without any service time, it measures nothing."""

    class Bare:
        async def call(self, request):
            await asyncio.sleep(0.03)
            return si.Response(request.inputs)

    meter = RttMeter("Lyon", "Paris", served_s=served_s)
    async with si.Stack(meter, Bare(), clock=loop.clock) as service:
        await service(1.0)

    assert meter.rtt_s == pytest.approx(expected)


@pytest.mark.parametrize("served_s", [lambda response: response.outputs["served"], lambda _: math.nan])
async def test_meter_error_does_not_fail_the_response(loop, caplog, served_s):
    """If `served_s` fails or returns NaN, the response reaches its caller, and the meter logs one warning."""
    meter = RttMeter("Lyon", "Paris", served_s=served_s)

    async with si.Stack(meter, ScriptedBackend(then=lambda _: [{"y": 1}]), clock=loop.clock) as service:
        assert await service(1.0) == {"y": 1}
        assert await service(1.0) == {"y": 1}

    assert meter.rtt_s == []
    assert [record.message.partition(" failed")[0] for record in caplog.records] == [
        "served_s of the meter 'Lyon to Paris'"
    ]


def test_meter_keeps_the_latest():
    meter = RttMeter("a", "b", served_s=lambda _: 0.0, keep=2)
    for after_s in (1, 2, 3):
        meter.exit(si.Request(0), 0, si.Response(0), after_s * 1_000_000_000)

    assert meter.rtt_s == [2.0, 3.0]


def test_problem_gets_links_times_and_rates(problem):
    """The problem gets the measured values; links keep their bandwidth, and unmeasured fields are unchanged."""
    rng = np.random.default_rng(0)
    rtt = RttSamples({"Lyon": {"Paris": rng.uniform(0.01, 0.02, 2_000)}})

    measured = with_measurements(
        problem, rtt=rtt, rates={"Lyon": [5.0, 7.0]},
        service_times={("faces", "fp32", "cpu"): ServiceTime.affine(0.01, 0.001)},
    )  # fmt: skip

    link = measured.links["Lyon"]["Paris"]
    assert 0.0195 < link.rtt.quantile(0.99) < 0.0201
    assert link.bandwidth_bytes_s == 1e6
    assert measured.clusters[0].rates == (5.0, 7.0)
    assert measured.models[0].variants[0].shards[0].service_time["cpu"] == ServiceTime.affine(0.01, 0.001)
    assert attrs.evolve(measured, links=problem.links, clusters=problem.clusters, models=problem.models) == problem


async def test_measurements_include_learned_service_times(loop, problem):
    """A batcher in `service_times` is replaced by the service time that it has learned."""
    batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=1.0)
    model = ScriptedBackend(duration_s=lambda size: 0.02 + 0.005 * size, example=1.0)
    async with si.Stack(batcher, model, clock=loop.clock) as service:
        for _ in range(20):
            await asyncio.gather(*(service(1.0) for _ in range(4)))

    measured = with_measurements(problem, service_times={("faces", "fp32", "cpu"): batcher})

    learned = measured.models[0].variants[0].shards[0].service_time["cpu"]
    assert learned.seconds(4) == pytest.approx(0.04, rel=0.1)


@pytest.mark.parametrize(
    ("before", "at_32"),
    [(ServiceTime.affine(0.04, 0.01), 0.18), (ServiceTime.table({1: 0.1, 8: 0.2, 32: 0.4}), 0.1)],
    ids=["affine", "table"],
)
@pytest.mark.parametrize("count", [1, 20])
async def test_unmeasured_batch_sizes_keep_their_proportions(loop, problem, before, at_32, count):
    """Unmeasured batch sizes keep their proportions from the problem: a quiet server runs single requests only."""
    shards = (Shard(service_time={"cpu": before}),)
    problem = attrs.evolve(
        problem, models=(Model(name="faces", variants=(Variant(name="fp32", shards=shards, max_batch_size=32),)),)
    )
    batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=1.0)
    async with si.Stack(batcher, ScriptedBackend(duration_s=0.025), clock=loop.clock) as service:
        for _ in range(count):
            await service(1.0)

    measured = with_measurements(problem, service_times={("faces", "fp32", "cpu"): batcher})

    learned = measured.models[0].variants[0].shards[0].service_time["cpu"]
    assert learned.seconds(1) == pytest.approx(0.025, rel=0.01)
    assert learned.seconds(32) == pytest.approx(at_32, rel=0.01)
    assert Problem.from_json(measured.to_json()) == measured


def test_batcher_that_has_run_nothing_is_named(problem):
    with pytest.raises(RuntimeError, match=r"service_times\[\('faces', 'fp32', 'cpu'\)\]: .* observed no batch"):
        with_measurements(problem, service_times={("faces", "fp32", "cpu"): si.AdaptiveBatcher(max_batch_size=2)})


@pytest.fixture
def sharded(problem):
    """Return the problem with a variant of three shards, of which the second needs a GPU."""
    times = [
        {"cpu": ServiceTime.affine(0.1, 0.1)},
        {"gpu": ServiceTime.affine(0.2, 0.2)},
        {"cpu": ServiceTime.affine(0.3, 0.3)},
    ]
    variant = Variant(name="fp32", shards=tuple(Shard(service_time=time) for time in times))
    return attrs.evolve(problem, models=(Model(name="faces", variants=(variant,)),))


def test_each_shard_gets_its_own_time(sharded):
    """Shards without a measurement, or on another kind of device, are unchanged."""
    measured = with_measurements(
        sharded, service_times={("faces", "fp32", "cpu"): [None, None, ServiceTime.affine(0.01, 0.001)]}
    )

    before, after = (it.models[0].variants[0].shards for it in (sharded, measured))
    assert after[2].service_time["cpu"] == ServiceTime.affine(0.01, 0.001)
    assert after[:2] == before[:2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ServiceTime.affine(1, 1), "a list with one for each of the 3 shards"),
        ([ServiceTime.affine(1, 1)] * 3, r"\[1\]: expected None, since it does not run there"),
    ],
)
def test_service_times_of_other_shards_are_rejected(sharded, given, message):
    with pytest.raises(ValueError, match=message):
        with_measurements(sharded, service_times={("faces", "fp32", "cpu"): given})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"service_times": {("faces", "fp32", "cpu"): [ServiceTime.affine(1, 1)] * 2}}, "one, for the only shard"),
        ({"rates": {"Nice": 1.0}}, "rates: expected names of clusters, got 'Nice'"),
        ({"service_times": {("faces", "int8", "cpu"): ServiceTime.affine(1, 1)}}, "model, variant and device"),
        ({"service_times": {("faces", "fp32", "cpu"): 0.1}}, "expected an AdaptiveBatcher"),
        (
            {"service_times": {("faces", "fp32", "cpu"): si.AdaptiveBatcher(max_batch_size=2, policy="greedy")}},
            "a batcher that learns one service time",
        ),
        ({"rtt": RttSamples({"Nice": {"Paris": np.ones(4)}})}, "links: expected a known name"),
        ({"problem": "berlin.json"}, "problem: expected a Problem"),
        ({"rtt": {"Nice": {"Paris": [0.01]}}}, "rtt: expected RttSamples or None"),
        ({"rates": 5.0}, "rates: expected a mapping or None"),
        ({"service_times": [ServiceTime.affine(1, 1)]}, "service_times: expected a mapping or None"),
    ],
    ids=["shards", "rates", "variant", "kind", "greedy", "cluster", "problem", "rtt", "number", "list"],
)
def test_unknown_names_are_rejected(problem, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        with_measurements(**{"problem": problem} | changes)


def test_meter_in_place_of_a_list_is_named():
    with pytest.raises(TypeError, match=r"meters: expected a list of RttMeters, got <RttMeter"):
        RttMeter.samples(RttMeter("Lyon", "Paris"))
