"""A guard that reads an objective which no telemetry feeds says so."""

import logging

import pytest

import streaminfer as si
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import ScriptedBackend, run


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("reader", ["fallback router", "concurrency limit"])
def test_an_objective_without_events_is_warned_of_once(caplog, reader, fed):
    """After a hundred requests without an event the guard logs one warning, and none where telemetry feeds it."""

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
