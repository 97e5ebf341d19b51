"""A device in simulated time: it repeats, counts each request once, and decides as the live batchers do."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import Lookahead, ServiceTime
from streaminfer.batching.batched_service import BatchedService
from streaminfer.protocols import Residency
from streaminfer.simulation import ModelLoad, arrivals, device_optimum, simulate_device
from streaminfer.testing import ScriptedBackend, run

FAST, SLOW = ServiceTime.affine(0.001, 0.0002), ServiceTime.affine(0.006, 0.0005)


def two_models(load=0.9, n=(600, 200), **options):
    loads = {}
    for at, (name, device, slo_s) in enumerate((("faces", FAST, 0.025), ("speech", SLOW, 0.1))):
        rate = load / 2 * 32 / (device.table_ns(32)[32] / 1e9)
        loads[name] = ModelLoad(
            arrivals.poisson(rate, n[at], at + 1), slo_s=slo_s, service_time=device, max_batch_size=32, **options
        )
    return loads


def test_a_run_repeats():
    one, other = (simulate_device(two_models(), noise=0.1, seed=3) for _ in range(2))

    for name, result in one.models.items():
        np.testing.assert_array_equal(result.latencies_s, other.models[name].latencies_s)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared": False},
        {"shared": False, "slowdown": None},
        {"concurrency": 2, "slowdown": 1.3},
        {"memory_bytes": 5},
        {"memory_bytes": 5, "concurrency": 2},
    ],
    ids=repr,
)
def test_each_request_is_counted_once(options):
    loads = two_models(1.2, memory_bytes=5, load_s=0.002)

    result = simulate_device(loads, **options)

    for name, model in result.models.items():
        assert model.on_time + model.late + model.dropped == loads[name].arrivals_ns.size
    assert result.share_on_time == result.on_time / sum(load.arrivals_ns.size for load in loads.values())


@pytest.mark.parametrize("busy_rate", [300, 650, 2_000])
def test_a_rare_model_is_served_beside_a_busy_one(busy_rate):
    """A model with few requests that each cost as much as many of another one is on time while there is time."""
    busy = ModelLoad(
        arrivals.poisson(busy_rate, 4 * busy_rate, 1),
        slo_s=0.1,
        service_time=ServiceTime.affine(0.010, 0.0003),
        max_batch_size=64,
    )
    rare = ModelLoad(
        arrivals.poisson(20, 80, 2), slo_s=0.03, service_time=ServiceTime.affine(0.0, 0.002), max_batch_size=16
    )

    result = simulate_device({"busy": busy, "rare": rare})

    assert result.models["rare"].on_time >= 0.95 * 80
    assert result.models["busy"].on_time == 4 * busy_rate


def test_batches_do_not_overlap():
    result = simulate_device(two_models(1.2))

    spans = sorted(
        span for model in result.models.values() for span in zip(model.batch_starts_s, model.batch_ends_s, strict=True)
    )
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))


def test_taking_turns_beats_separate_batchers():
    """Batchers that take turns have more requests on time than batchers that know nothing of each other."""
    loads = two_models(1.2)

    assert simulate_device(loads).on_time > 1.02 * simulate_device(loads, shared=False).on_time


def test_unequal_models_under_bursts_are_near_optimum():
    """Unequal models under bursts have at least 93 % of the optimum on time.

    The bursts have 1.2 times the capacity. The optimum is 2,043 requests, for which `device_optimum` takes seconds.
    """
    loads = {}
    for at, (name, service_time, slo_s) in enumerate((("faces", FAST, 0.025), ("speech", SLOW, 0.1))):
        rate = 0.6 * 32 / service_time.seconds(32)
        trace = arrivals.on_off(rate, round(rate * 0.8), 10 + at)
        loads[name] = ModelLoad(trace, slo_s=slo_s, service_time=service_time, max_batch_size=32)

    assert simulate_device(loads).on_time >= 0.93 * 2043


def test_bursts_without_batching_gain_are_near_optimum():
    """Models that gain nothing from batches have, under bursts, at least 97 % of the optimum on time.

    The optimum is 627 requests. One rule for what follows a batch gives 0.951 of it, and one arrival rate 0.959.
    """
    device = ServiceTime.affine(0.001, 0.001)
    rate = 0.6 * 32 / (device.table_ns(32)[32] / 1e9)
    loads = {
        str(slo_s): ModelLoad(
            arrivals.on_off(rate, round(rate * 0.8), 20 + number), slo_s=slo_s, service_time=device, max_batch_size=32
        )
        for number, slo_s in enumerate((0.025, 0.1))
    }

    assert simulate_device(loads).on_time >= 0.97 * 627


def test_model_with_larger_weight_is_served_more():
    """A model with ten times the weight has over a fifth more requests on time."""
    loads = two_models(2.5)

    plain = simulate_device(loads).models["speech"].on_time
    weighted = simulate_device(loads, weights={"speech": 10.0}).models["speech"].on_time

    assert weighted > 1.2 * plain


def test_no_model_waits_longer_than_the_bound():
    loads = two_models(3.0, n=(4000, 300))

    statistics = simulate_device(loads, weights={"speech": 0.001}, max_wait_s=0.05).device

    longest_batch_s = SLOW.table_ns(32)[32] / 1e9
    assert 0 < statistics.models["speech"].longest_wait_s <= 0.05 + 2 * longest_batch_s


def test_wait_bound_holds_as_requests_miss_deadlines():
    """A model is served within the bound although its requests miss their deadlines one by one."""
    loads = two_models(3.0, n=(4000, 2))
    seldom = np.arange(0.01, loads["faces"].arrivals_ns[-1] / 1e9, 0.04)
    loads["speech"] = ModelLoad(seldom, slo_s=0.03, service_time=SLOW, max_batch_size=32)

    speech = simulate_device(loads, weights={"speech": 0.001}, max_wait_s=0.1).models["speech"]

    assert speech.on_time >= 0.8 * seldom[-1] / 0.14


def test_slowdown_of_concurrent_batches_is_learned():
    """The device learns the slowdown of batches that run together."""
    statistics = simulate_device(two_models(0.5), concurrency=2, slowdown=1.5).device

    assert statistics.models["faces"].slowdowns["speech"] == pytest.approx(1.5, rel=0.1)


def test_models_better_in_turn_are_kept_apart():
    """Models that have more requests on time one after the other do not run together."""
    loads = two_models(n=(3000, 1000))

    together = simulate_device(loads, shared=False, slowdown=3.0)
    apart = simulate_device(loads, concurrency=2, slowdown=3.0)

    assert apart.share_on_time > max(1.1 * together.share_on_time, 0.9 * simulate_device(loads).share_on_time)


def test_planned_loads_are_near_optimum():
    """With planned loads, at least 90 % of the optimum is on time."""
    loads = two_models(0.9, memory_bytes=5, load_s=0.004)

    result = simulate_device(loads, memory_bytes=5)

    best = device_optimum(loads, memory_bytes=5)
    assert best < device_optimum(loads)
    assert 0.9 * best <= result.on_time <= best
    models = result.device.models
    assert models["faces"].loads + models["speech"].loads < models["faces"].batches + models["speech"].batches
    for had in models.values():
        assert had.load_s == pytest.approx(0.004 * had.loads)


@pytest.mark.parametrize("swapped", [False, True], ids=["slow-first", "fast-first"])
def test_long_load_serves_all_queued_requests(swapped):
    """A load of 2.6 s serves over two batches, although `max_wait_s` is 1 s, beside a fast and beside a slow model."""
    devices = [ServiceTime.affine(0.1, 0.01), ServiceTime.affine(0.0002, 0.00005)]
    loads = {
        name: ModelLoad(
            arrivals.poisson(10, 300, at + 1),
            slo_s=8.0,
            service_time=device,
            max_batch_size=16,
            memory_bytes=4,
            load_s=2.6,
        )
        for at, (name, device) in enumerate(zip("ab", devices[::-1] if swapped else devices, strict=True))
    }

    result = simulate_device(loads, memory_bytes=5)

    assert result.on_time > 0.9 * device_optimum(loads, memory_bytes=5)
    assert all(had.batches > 2 * had.loads for had in result.device.models.values())


def test_models_that_fit_together_are_loaded_once():
    models = simulate_device(two_models(memory_bytes=5, load_s=0.01), memory_bytes=10).device.models

    assert [had.loads for had in models.values()] == [1, 1]


@pytest.mark.parametrize(
    ("rates", "load_s", "bar"),
    [((5, 50), 0.5, 0.55), ((2, 50), 0.5, 0.6), ((20, 100), 0.2, 0.7), ((5, 5), 0.5, 0.5)],
    ids=["1 to 10", "1 to 25", "1 to 5", "alike"],
)
def test_long_loads_do_not_take_over_device(rates, load_s, bar):
    """Loads that take longer than the SLO do not take over the device.

    A model stays in memory while it serves more than the other would; each model runs after at most `max_wait_s`.
    """
    loads = {
        name: ModelLoad(
            arrivals.poisson(rate, 60 * rate, seed),
            slo_s=0.1,
            service_time=ServiceTime.affine(0.005, 0.001),
            max_batch_size=16,
            memory_bytes=4,
            load_s=load_s,
        )
        for seed, (name, rate) in enumerate(zip(("seldom", "often"), rates, strict=True))
    }

    result = simulate_device(loads, memory_bytes=6)

    assert result.on_time > bar * device_optimum(loads, memory_bytes=6)
    assert result.device.models["seldom"].batches >= 10


def test_loaded_model_runs_before_its_eviction():
    """A loaded model runs a batch before it is evicted, even beside a model from which it is kept apart."""
    models = {
        "urgent": (ServiceTime.affine(0.0026, 0.0012), 124, 200, 0.05, 1, 3),
        "passed over": (ServiceTime.affine(0.008, 0.0005), 144, 290, 0.05, 1, 3),
        "beside": (ServiceTime.affine(0.0039, 0.0024), 248, 258, 0.2, 4, 2),
    }
    loads = {
        name: ModelLoad(
            arrivals.poisson(rate, n, seed),
            slo_s=limit_s,
            service_time=service_time,
            max_batch_size=cap,
            memory_bytes=size,
            load_s=0.01,
        )
        for seed, (name, (service_time, rate, n, limit_s, cap, size)) in enumerate(models.items(), 25)
    }

    result = simulate_device(
        loads,
        concurrency=2,
        max_wait_s=0.1,
        slowdown=3.0,
        memory_bytes=5,
        weights={"urgent": 1000.0, "beside": 0.001},
    )

    had = result.device.models["passed over"]
    assert had.batches >= had.loads > 3
    assert had.longest_wait_s < 0.3


def test_weight_of_an_unknown_model_is_rejected():
    """A weight of an unknown model is rejected, because a misspelled name would have no effect."""
    with pytest.raises(ValueError, match="weights: expected names of loads, got 'face'"):
        simulate_device(two_models(), weights={"face": 2.0})


def test_noise_is_a_number():
    with pytest.raises(ValueError, match="noise: expected a number from 0 to 3, got -1"):
        simulate_device(two_models(), noise=-1)


def test_model_larger_than_memory_is_rejected():
    """A model that is larger than the memory is rejected, as are other wrong values of `memory_bytes`."""
    loads = two_models(memory_bytes=5)
    with pytest.raises(ValueError, match="memory_bytes: expected at least 5, for faces, got 4"):
        simulate_device(loads, memory_bytes=4)
    with pytest.raises(ValueError, match="memory_bytes: expected room for each model alone, got 4"):
        device_optimum(loads, memory_bytes=4)
    for no_count in (10.5, "10"):
        with pytest.raises(TypeError, match="memory_bytes: expected a whole number"):
            device_optimum(loads, memory_bytes=no_count)
    with pytest.raises(ValueError, match="memory_bytes: expected None where batchers do not share the device, got 9"):
        simulate_device(loads, memory_bytes=9, shared=False)


@pytest.mark.parametrize("memory_bytes", [None, 5])
def test_live_batchers_decide_as_simulated_ones(memory_bytes):
    loads = two_models(1.2, memory_bytes=5, load_s=0.003)
    simulated = simulate_device(loads, memory_bytes=memory_bytes)

    async def come():
        await asyncio.sleep(0.003)

    async def go():
        pass

    async def main(loop):
        device = si.Device("gpu:0", memory_bytes=memory_bytes)
        backends = {}
        services = {}
        for name, load in loads.items():
            table = load.durations_ns
            backends[name] = ScriptedBackend(duration_s=lambda rows, table=table: table[rows] / 1e9)
            backends[name].name = name
            backends[name].residency = Residency(5, come, go)
            services[name] = BatchedService(
                backends[name],
                policy=Lookahead(32, load.service_time),
                max_batch_size=32,
                max_queue_size=10_000,
                max_in_flight=1,
                slo_s=load.slo_ns / 1e9,
                stack=False,
                clock=loop.clock,
                device=device,
            )
        calls = []
        coming = sorted((at, name) for name, load in loads.items() for at in load.arrivals_ns.tolist())
        for at, name in coming:
            await asyncio.sleep(max(at - loop.clock(), 0) / 1e9)
            calls.append(asyncio.ensure_future(services[name].call(si.Request(1.0))))
        await asyncio.gather(*calls, return_exceptions=True)
        return {name: [len(batch) for batch in backend.batches] for name, backend in backends.items()}

    live = run(main)

    for name, result in simulated.models.items():
        assert live[name] == result.batch_sizes.tolist()
