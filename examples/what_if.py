"""Record traffic from a live batcher, then replay it with other settings.

Runs on a virtual clock. Run it from the root of a checkout.
"""

import asyncio

import streaminfer as si
from streaminfer.batching import ServiceTime, what_if
from streaminfer.simulation import arrivals
from streaminfer.testing import ScriptedBackend, VirtualLoop, run

GPU = ServiceTime.affine(0.005, 0.001)  # a batch takes 5 ms, plus 1 ms per request


async def record(loop: VirtualLoop) -> si.DecisionLog:
    """Send bursty requests to a batcher around a simulated GPU; return its decision log."""
    batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=0.050, policy="greedy")
    async with si.Stack(batcher, ScriptedBackend(duration_s=GPU.seconds), clock=loop.clock) as service:
        calls = []
        for instant_s in arrivals.on_off(500, 3000, seed=1):
            await asyncio.sleep(instant_s - loop.time())
            calls.append(asyncio.ensure_future(service(1.0)))
        await asyncio.gather(*calls, return_exceptions=True)
    return batcher.decision_log()


def main() -> None:
    """Print the reasons of releases, and the table of the scenarios."""
    log = run(record)
    print(log.explain(), end="\n\n")
    table = what_if(
        log.to_trace(),
        service_time={"this GPU": GPU, "twice as fast": ServiceTime.affine(0.0025, 0.0005)},
        max_batch_size=32,
        slo_s=[0.025, 0.050],
        policy=["greedy", "lookahead"],
    )
    print(table, table.best(), sep="\n\n")


if __name__ == "__main__":
    main()
