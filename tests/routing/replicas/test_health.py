"""Health checks of replicas: ejection, return, and the end of the probes."""

import asyncio
import functools
import itertools
import math

import numpy as np
import pytest

import streaminfer as si
from streaminfer.routing import HealthCheck, Replica, Replicas
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Fleet:
    """Replicas whose probes have the results that the test sets."""

    def __init__(self, loop, *names, **settings):
        self.loop = loop
        self.broken = {}
        self.probes = []
        self.running = 0
        check = HealthCheck(self.probe, **{"interval_s": 1.0, "timeout_s": 0.5, **settings})
        made = [Replica(name, si.Stack(ScriptedBackend(duration_s=0.001))) for name in names]
        self.replicas = Replicas(*made, health=check, slow_start_s=0.0, seed=1, clock=loop.clock)

    async def probe(self, replica):
        self.probes.append((replica.name, self.loop.time()))
        broken = self.broken.get(replica.name)
        self.running += 1
        try:
            if broken == "hangs":
                await asyncio.get_running_loop().create_future()
        finally:
            self.running -= 1
        if isinstance(broken, BaseException):
            raise broken
        return np.bool_(False) if broken == "says NumPy's no" else broken != "says no"

    def states(self):
        return {replica.name: replica.state for replica in self.replicas.statistics().replicas}


@pytest.mark.parametrize(
    "broken",
    [ConnectionError("gone"), "says no", "says NumPy's no", "hangs", asyncio.CancelledError()],
    ids=["raises", "false", "NumPy's false", "hangs", "cancelled"],
)
def test_unhealthy_replica_is_ejected_and_returns(broken, caplog):
    """An unhealthy replica gets no requests until it recovers.

    After three failures in a row the replica is ejected; after two successes it is probing, then active.
    """

    async def main(loop):
        fleet = Fleet(loop, "a", "b")
        async with si.Stack(fleet.replicas, clock=loop.clock) as service:
            fleet.broken["a"] = broken
            await asyncio.sleep(2.0)
            assert fleet.states() == {"a": "active", "b": "active"}
            await asyncio.sleep(2.5)
            seen = fleet.replicas.statistics()
            assert (seen["a"].state, seen["a"].returns_in_s, seen.ejected) == ("unhealthy", math.inf, 1)
            asked = seen["a"].attempts
            for _ in range(50):
                await service(1.0)
            assert fleet.replicas.statistics()["a"].attempts == asked
            del fleet.broken["a"]
            await asyncio.sleep(2.5)
            assert fleet.states()["a"] == "probing"
            for _ in range(50):
                await service(1.0)
            assert fleet.states() == {"a": "active", "b": "active"}
            assert fleet.replicas.statistics()["a"].attempts > asked + 10
            seen = fleet.replicas.statistics()
            assert seen.failed_probes >= 3
            assert seen.probes == len(fleet.probes)

    run(main)
    assert [record.message.split(":")[0] for record in caplog.records] == ["replica 'a' is unhealthy and ejected"]
    assert caplog.records[0].exc_info


def test_an_unhealthy_replica_gets_no_second_attempts():
    """If the only healthy replica fails, its error is raised, and the unhealthy replica is not called."""

    async def main(loop):
        fleet = Fleet(loop, "hangs", unhealthy_after=1)
        fleet.broken = {"hangs": "hangs"}
        await fleet.replicas.add(Replica("fails", si.Stack(ScriptedBackend(*[ConnectionError("once")] * 50))))
        async with si.Stack(fleet.replicas, clock=loop.clock) as service:
            await asyncio.sleep(2.0)
            for _ in range(50):
                with pytest.raises(si.BackendError):
                    await service(1.0)
            seen = fleet.replicas.statistics()
            assert (seen["hangs"].attempts, seen.retried, seen.panics) == (0, 0, 0)

    run(main)


def test_requests_continue_if_all_are_unhealthy():
    """A wrong probe does not end the service: if all replicas are unhealthy, all of them get requests."""

    async def main(loop):
        fleet = Fleet(loop, "a", "b")
        fleet.broken = {"a": "says no", "b": "says no"}
        async with si.Stack(fleet.replicas, clock=loop.clock) as service:
            await asyncio.sleep(5.0)
            assert set(fleet.states().values()) == {"unhealthy"}
            for _ in range(10):
                await service(1.0)
            assert fleet.replicas.statistics().panics == 10
            assert set(fleet.states().values()) == {"unhealthy"}

    run(main)


def test_probes_are_spread_and_keep_their_interval():
    """The first probe of each replica comes at a random instant within the interval, the next ones at the interval."""

    async def main(loop):
        fleet = Fleet(loop, *"abcdef")
        async with si.Stack(fleet.replicas, clock=loop.clock):
            await asyncio.sleep(5.0)
        assert len(fleet.probes) == 30
        firsts = sorted(at_s for _, at_s in fleet.probes[:6])
        assert len({round(at_s, 3) for at_s in firsts}) == 6
        of_a = [at_s for name, at_s in fleet.probes if name == "a"]
        assert [later - sooner for sooner, later in itertools.pairwise(of_a)] == pytest.approx([1.0] * 4)

    run(main)


def test_seed_of_probes_can_be_a_number_of_numpy():
    """Replicas with probes accept a seed of NumPy, as those without probes do."""

    async def probe(replica):
        return True

    check = HealthCheck(probe, interval_s=1.0)

    replicas = Replicas(Replica("a", si.Stack(ScriptedBackend())), health=check, seed=np.int64(1))

    assert [it.name for it in replicas.statistics().replicas] == ["a"]


def test_no_probe_outlives_the_stop_or_its_replica():
    """Probes end when their replica is removed or the set stops, even one that hangs; the next start probes again."""

    async def main(loop):
        fleet = Fleet(loop, "a", "b", timeout_s=60.0)
        fleet.broken = {"b": "hangs"}
        before = asyncio.all_tasks()
        stack = si.Stack(fleet.replicas, clock=loop.clock)
        await stack.start()
        await fleet.replicas.add(Replica("c", si.Stack(ScriptedBackend())))
        await asyncio.sleep(1.5)
        assert fleet.running == 1
        assert {name for name, _ in fleet.probes} == {"a", "b", "c"}
        await fleet.replicas.remove("a")
        await asyncio.sleep(0)
        count = sum(name == "a" for name, _ in fleet.probes)
        await asyncio.sleep(3.0)
        assert sum(name == "a" for name, _ in fleet.probes) == count
        await stack.stop()
        assert fleet.running == 0
        assert asyncio.all_tasks() == before
        sent = len(fleet.probes)
        await asyncio.sleep(5.0)
        assert len(fleet.probes) == sent
        await stack.start()
        await asyncio.sleep(1.5)
        assert len(fleet.probes) > sent
        await stack.stop()

    run(main)


def test_a_start_on_another_event_loop_probes_again():
    """If an event loop ended without a stop, a start on another loop sends probes again."""

    async def begin(loop):
        fleet = Fleet(loop, "a", "b")
        stack = si.Stack(fleet.replicas)
        await stack.start()
        return fleet, stack

    fleet, stack = run(begin)

    async def go_on(loop):
        fleet.loop = loop
        async with stack:
            await asyncio.sleep(1.5)

    run(go_on)

    assert {name for name, _ in fleet.probes} == {"a", "b"}


def test_unhealthy_replica_can_return_after_restart():
    """A replica is still unhealthy after a stop, and recovers after the next start."""

    async def main(loop):
        fleet = Fleet(loop, "a", "b")
        fleet.broken = {"a": "says no"}
        stack = si.Stack(fleet.replicas, clock=loop.clock)
        async with stack:
            await asyncio.sleep(5.0)
        assert fleet.states()["a"] == "unhealthy"
        fleet.broken = {}
        async with stack:
            await asyncio.sleep(3.5)
            assert fleet.states()["a"] == "probing"

    run(main)


def test_only_failures_in_a_row_count():
    """A success resets the count of failures, and a failure resets the count of successes."""

    async def main(loop):
        fleet = Fleet(loop, "a", "b")
        states = []
        async with si.Stack(fleet.replicas, clock=loop.clock):
            await asyncio.sleep(1.0)
            for said in (False, False, True, False, False, False, True, False, True, True):
                fleet.broken = {} if said else {"a": "says no"}
                await asyncio.sleep(1.0)  # one probe
                states.append(fleet.states()["a"])
        assert states == ["active"] * 5 + ["unhealthy"] * 4 + ["probing"]

    run(main)


def test_removed_unhealthy_replica_leaves_no_trace():
    """A removed unhealthy replica is not counted as ejected, and a new replica of its name is active."""

    async def main(loop):
        fleet = Fleet(loop, "a", "b")
        fleet.broken = {"a": "says no"}
        async with si.Stack(fleet.replicas, clock=loop.clock):
            await asyncio.sleep(5.0)
            await fleet.replicas.remove("a")
            assert fleet.replicas.statistics().ejected == 0
            await fleet.replicas.add(Replica("a", si.Stack(ScriptedBackend())))
            assert fleet.states()["a"] == "active"

    run(main)


async def _probe(replica, other=None):
    """Do nothing."""


def test_probes_are_async_functions():
    """A probe can be a partial or an object with an async call; a plain function, which would block, is rejected."""

    class Probe:
        async def __call__(self, replica):
            """Do nothing."""

    HealthCheck(functools.partial(_probe, other=1))
    HealthCheck(Probe())
    with pytest.raises(TypeError, match="probe: expected an async function of a Replica"):
        HealthCheck(lambda replica: True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval_s": 0.0}, "interval_s: expected a finite number of seconds > 0"),
        ({"timeout_s": -1.0}, "timeout_s: expected a finite number of seconds > 0"),
        ({"unhealthy_after": 0}, "unhealthy_after: expected a whole number ≥ 1"),
        ({"healthy_after": 1.5}, "healthy_after: expected a whole number ≥ 1"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        HealthCheck(_probe, **settings)


def test_replicas_name_a_wrong_health_check():
    with pytest.raises(TypeError, match="health: expected a HealthCheck or None"):
        Replicas(Replica("a", si.Stack(ScriptedBackend())), health=_probe)
