"""One client whose deadlines no response can meet changes nothing for the others."""

import asyncio
from collections import Counter

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run


def stack_of(duration_s):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=duration_s))


def test_impossible_deadlines_do_not_degrade_others():
    """A client that gives 1 ms spends no error budget, and the router keeps sending others to the best route."""

    async def main(loop):
        slo = si.SLO("s", threshold_s=0.05)
        router = si.FallbackRouter(
            si.Route("best", stack_of(0.010)), si.Route("lesser", stack_of(0.005), quality=0.5), slo=slo
        )
        async with si.Stack(si.Telemetry(slo=slo), router, clock=loop.clock) as service:

            async def send(timeout_ms):
                try:
                    request = si.Request(1.0, deadline_ns=service.clock() + timeout_ms * 1_000_000)
                    return (await service.call(request)).source
                except si.DeadlineExceeded:
                    return "late"

            sources = []
            for _ in range(600):
                _, patient = await asyncio.gather(send(1), send(50))
                sources.append(patient)
                await asyncio.sleep(0.01)
        return Counter(sources), slo

    sources, slo = run(main)
    assert (slo.bad, slo.ignored, slo.burning()) == (1, 599, False)
    assert sources == {"best": 600}
