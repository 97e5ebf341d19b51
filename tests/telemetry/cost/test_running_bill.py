"""The bill of a cost meter while batches run, and with a clock of its own."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.batching import ServiceTime
from streaminfer.protocols import Service
from streaminfer.request import Response
from streaminfer.telemetry import CostMeter
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def test_settled_amounts_never_fall():
    """Settled amounts never fall, although padding is part of the charge of a running batch until the batch ends.

    An exported counter that falls would look like a restart.
    """

    async def main(loop):
        meter = CostMeter(per_second=1.0)
        batcher = si.AdaptiveBatcher(
            max_batch_size=8, preferred_sizes=[1, 8], service_time=ServiceTime.affine(0.06, 0.005)
        )
        seen = []
        async with si.Stack(meter, batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
            calls = asyncio.gather(*(stack(1.0) for _ in range(2)))
            for _ in range(4):
                await asyncio.sleep(0.04)
                seen.append(meter.statistics())
            await calls
        return seen

    seen = run(main)
    seen[0]._repr_html_()  # all bars of its figure have length 0
    assert max(statistics.busy for statistics in seen) > seen[-1].busy
    for use in ("busy", "padding", "idle"):
        amounts = [statistics.settled[use] for statistics in seen]
        assert amounts == sorted(amounts)
        assert amounts[-1] == getattr(seen[-1], use) > 0.0


@pytest.mark.parametrize("ahead_ns", [10**15, -(10**15)])
@pytest.mark.parametrize("batched", [True, False])
def test_own_clock_can_count_from_another_instant(ahead_ns, batched):
    """A clock of the meter's own can count from another instant than that of the stack.

    Batches and deadlines use the stack's clock, and the bill uses the meter's clock.
    """

    class Single(Service):
        async def call(self, request):
            await asyncio.sleep(0.1)
            return Response(request.inputs)

    async def main(loop):
        meter = CostMeter(per_second=1.0, clock=lambda: loop.clock() + ahead_ns)
        inside = (si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.1)) if batched else (Single(),)
        async with si.Stack(meter, *inside, clock=loop.clock) as stack:
            await asyncio.sleep(0.3)
            for _ in range(2):
                await stack(1.0, timeout_s=0.2)
            return meter.statistics()

    statistics = run(main)
    assert (statistics.busy, statistics.idle) == pytest.approx((0.2, 0.3))
    assert (statistics.total.responses, statistics.total.on_time) == (2, 2)
