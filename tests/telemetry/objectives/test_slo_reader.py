"""A custom objective that raises: the guard that reads it continues, and requests get their responses."""

import asyncio
import logging

import pytest

import streaminfer as si
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.routing import FallbackRouter, Route
from streaminfer.telemetry.objectives.slo_reader import SloReader
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Budget:
    """Objective that raises ``failure``, if it is set, when it is read."""

    def __init__(self):
        self.failure = None
        self.says = True
        self.asked = 0

    def burning(self):
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.says

    @property
    def threshold_s(self):
        if self.failure is not None:
            raise self.failure
        return 0.1


@pytest.mark.parametrize(
    "failure", [ConnectionError("no metrics"), asyncio.CancelledError()], ids=["error", "cancelled"]
)
@pytest.mark.parametrize("reader", ["fallback router", "concurrency limit"])
def test_an_objective_that_raises_fails_no_request(caplog, reader, failure):
    """If an objective raises, only its first failure is logged, and no request fails."""

    async def main(loop):
        budget = Budget()
        budget.says = False
        backend = ScriptedBackend(duration_s=0.001)
        layers = [ConcurrencyLimit(slo=budget), backend]
        if reader == "fallback router":
            layers = [FallbackRouter(Route("best", backend), slo=budget, step_s=0.01)]
        async with si.Stack(*layers, clock=loop.clock) as service:
            await service(1.0)
            asked = budget.asked
            budget.failure = failure
            for _ in range(600):
                assert await service(1.0) == 1.0
            assert budget.asked > asked

    with caplog.at_level(logging.ERROR, "streaminfer.telemetry"):
        run(main)

    assert [record.message.split(":")[0] for record in caplog.records] == [f"a {reader}"]


def test_an_objective_that_raises_does_not_burn():
    """An objective that raises counts as not burning, and its last known threshold still holds."""
    budget = Budget()
    reader = SloReader(budget, "a test")
    assert (reader.burning(1), reader.threshold_ns()) == (True, 1e8)
    budget.failure = ValueError("broken")
    assert (reader.burning(2), reader.threshold_ns()) == (False, 1e8)
    budget.failure = None
    assert reader.burning(3)
    assert not SloReader(None, "a test").burning(1)


def test_keyboard_interrupt_is_raised():
    """A KeyboardInterrupt is raised, because it is no failure of the objective."""
    budget = Budget()
    budget.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        SloReader(budget, "a test").burning(1)


def test_limit_needs_objective_with_threshold():
    """The limit aims at ``threshold_s``, so the constructor rejects an object without one."""

    class NoThreshold:
        def burning(self):
            return False

    with pytest.raises(TypeError, match="slo: expected an SLO or None"):
        ConcurrencyLimit(slo=NoThreshold())


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("reader", ["fallback router", "concurrency limit"])
def test_an_objective_without_events_is_warned_of_once(caplog, reader, fed):
    """After a hundred requests without an event the guard logs one warning, and none if telemetry feeds the SLO."""

    async def main(loop):
        slo = si.SLO("faces", threshold_s=0.1)
        backend = ScriptedBackend(duration_s=0.001)
        if reader == "fallback router":
            layers = [FallbackRouter(Route("best", backend), slo=slo)]
        else:
            layers = [ConcurrencyLimit(slo=slo), backend]
        if fed:
            layers.insert(0, si.Telemetry(slo=slo))
        async with si.Stack(*layers, clock=loop.clock) as service:
            for _ in range(600):
                await service(1.0)

    with caplog.at_level(logging.WARNING, "streaminfer.telemetry"):
        run(main)

    assert sum(f"a {reader} reads SLO 'faces'" in record.message for record in caplog.records) == (not fed)
