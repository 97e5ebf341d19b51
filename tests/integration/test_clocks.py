"""Clocks whose integers are not Python's, such as NumPy's."""

import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Instant:
    """Integer of another library, with no arithmetic at all."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_layers_read_any_clock_as_python_integers():
    """Each layer with a clock of its own converts the integers that it returns."""

    async def main(loop):
        def clock():
            return Instant(loop.clock())

        model = ScriptedBackend(duration_s=0.001, then=lambda batch: list(batch.inputs))
        batcher = si.AdaptiveBatcher(max_batch_size=2, clock=clock)
        replica = si.Stack(batcher, si.CircuitBreaker(clock=clock), model, clock=clock)
        telemetry = si.Telemetry(slo=si.SLO("s", threshold_s=0.05, clock=clock), clock=clock)
        layers = (
            telemetry,
            si.telemetry.Outcomes(clock=clock),
            si.EdgeCache(ttl_s=0.01, stale_s=1.0, clock=clock),
            si.RateLimit(100.0, clock=clock),
            si.ConcurrencyLimit(clock=clock),
            si.RetryBudget(clock=clock),
            si.Hedge(clock=clock),
            si.FallbackRouter(si.Route("a", si.Replicas(si.Replica("a", replica), clock=clock)), clock=clock),
        )
        async with si.Stack(*layers, clock=clock) as stack:
            outputs = [await stack(float(number % 5), timeout_s=1.0) for number in range(20)]
        return outputs, telemetry.statistics().outcomes

    assert run(main) == ([float(number % 5) for number in range(20)], {"ok": 20})
