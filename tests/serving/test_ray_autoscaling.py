"""Number of wanted replicas, and the measurements of a replica's stack."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.serving import Autoscaling
from streaminfer.serving.ray.autoscaling import QueueDelayPolicy, ReplicaState, wanted_replicas
from streaminfer.serving.ray.replica_meter import ReplicaMeter, burn_rate
from streaminfer.testing import HANG, ScriptedBackend


def wanted(current, *states):
    return wanted_replicas(current, [ReplicaState(*state) for state in states], queue_delay_s=0.02, burn_limit=6.0)


@pytest.mark.parametrize(
    ("current", "states", "expected"),
    [
        (2, [], 2),
        (2, [(0.03, 0.0, 0.9)] * 2, 3),
        (2, [(0.5, 0.0, 1.0)] * 2, 4),
        (4, [(0.5, 0.0, 1.0)] * 2, 4),
        (2, [(0.0, 6.0, 0.1), (0.0, 0.0, 0.1)], 3),
        (4, [(0.015, 0.0, 0.1)] * 4, 4),
        (4, [(0.001, 0.0, 0.3)] * 4, 2),
        (4, [(0.001, 0.0, 0.6)] * 4, 4),
        (3, [(0.0, 0.0, 0.0)] * 3, 1),
    ],
    ids=["no report", "delay", "at most twofold", "some start", "burning", "calm enough", "idle", "busy", "empty"],
)
def test_wanted_replicas(current, states, expected):
    assert wanted(current, *states) == expected


_state = st.tuples(st.floats(0, 1), st.floats(0, 20), st.floats(0, 1))


@given(st.integers(1, 50), st.lists(_state, min_size=1, max_size=50), st.floats(0, 1))
def test_more_delay_never_wants_fewer_replicas(current, states, more_s):
    later = [(delay_s + more_s, burn, busy) for delay_s, burn, busy in states]
    assert wanted(current, *later) >= wanted(current, *states)
    assert 1 <= wanted(current, *states) <= 2 * current


def test_policy_reads_newest_values_of_replicas():
    """The policy reads the newest values of the replicas that run, and of no others.

    It never reads the counts of requests, which Ray's default policy uses.
    """

    def series(**values):
        return {name: [SimpleNamespace(value=value) for value in points] for name, points in values.items()}

    class Context(SimpleNamespace):
        @property
        def total_num_requests(self):
            raise AssertionError("counts of requests are not read")

    context = Context(
        target_num_replicas=2,
        running_replicas=["a", "b", "starts"],
        raw_metrics={
            "queue_delay_s": series(a=[9.0, 0.03], b=[0.03], gone=[9.0]),
            "burn_rate": series(a=[0.0], b=[0.0], gone=[9.0]),
            "utilization": series(a=[0.9], b=[0.9], gone=[0.9], starts=[]),
        },
    )
    assert QueueDelayPolicy(0.02, 6.0)(context) == (3, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas: expected from 1 to max_replicas=2"),
        ({"min_replicas": 0, "max_replicas": 2}, "min_replicas: expected a whole number ≥ 1, got 0"),
        ({"max_replicas": 2.5}, r"max_replicas: expected a whole number ≥ 1, got 2\.5"),
        ({"max_replicas": "2"}, "max_replicas: expected a whole number ≥ 1, got '2'"),
        ({"max_replicas": 2, "queue_delay_s": 0.0}, "queue_delay_s: expected"),
        ({"max_replicas": 2, "burn_rate": 0}, "burn_rate: expected a number > 0"),
    ],
)
def test_wrong_autoscaling_options_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Autoscaling(**options)


def metered(loop, *layers):
    meter = ReplicaMeter()
    return meter, si.Stack(meter, si.Stack(*layers), clock=loop.clock)


async def test_the_meter_measures_what_requests_cost(loop):
    """For batches of four that take 8 ms, the meter reports 2 ms per request and the delay of the second batch."""
    meter, stack = metered(loop, si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.008))
    async with stack:
        requests = [asyncio.create_task(stack(float(number))) for number in range(8)]
        await asyncio.sleep(0.001)
        assert meter.report(loop.clock()).in_flight == 8
        await asyncio.gather(*requests)
        load, state = meter.report(loop.clock()), meter.state(loop.clock(), 0.0)
        assert load.in_flight == 0
        assert load.service_s == pytest.approx(0.008, rel=0.2)
        assert load.per_request_s == pytest.approx(0.002, rel=0.6)
        assert 0.003 < state.queue_delay_s < 0.02
        assert 0 < state.utilization < 0.1
        await asyncio.sleep(30.0)
        assert meter.state(loop.clock(), 0.0).queue_delay_s < 1e-4


async def test_rejected_requests_count_as_long_waits(loop):
    """Rejected requests count as long waits: the queue delay shows overload although served requests waited little."""
    meter, stack = metered(loop, si.AdaptiveBatcher(max_batch_size=1, slo_s=0.5), ScriptedBackend(duration_s=0.1))
    async with stack:
        await asyncio.gather(*(stack(float(number)) for number in range(40)), return_exceptions=True)
    assert meter.state(loop.clock(), 0.0).queue_delay_s > 0.3


async def test_the_meter_tells_routers_which_share_fails(loop):
    """The meter counts failures and forgets them after a while; an invalid input or a cancelled call is no failure."""
    faults = [si.InvalidInput("no such shape"), HANG, *[OSError("device lost")] * 14]
    meter, stack = metered(loop, ScriptedBackend(*faults, duration_s=0.01))
    async with stack:
        with pytest.raises(si.InvalidInput):
            await stack(1.0)
        hanging = asyncio.create_task(stack(1.0))
        await asyncio.sleep(0.1)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        assert meter.report(loop.clock()).success == 1.0

        for _ in range(14):
            with pytest.raises(si.BackendError):
                await stack(1.0)
        assert meter.report(loop.clock()).success == pytest.approx(0.125, abs=0.01)
        await asyncio.sleep(20.0)
        assert meter.report(loop.clock()).success > 0.99


async def test_burn_rate_is_that_of_inner_objectives(loop):
    """The burn rate of a stack is that of the objectives inside it, and 0 without any."""
    slo = si.SLO("model", threshold_s=0.01, objective=0.9)
    stack = si.Stack(si.Telemetry("model", slo=slo), ScriptedBackend(duration_s=0.05), clock=loop.clock)
    async with stack:
        await stack(1.0)
        assert burn_rate(stack) == pytest.approx(10.0)
    assert burn_rate(si.Stack(ScriptedBackend())) == 0.0
