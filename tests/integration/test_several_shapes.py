"""Share of requests on time if inputs that cannot be stacked share a device at its capacity, in virtual time."""

import asyncio

import numpy as np
import pytest

import streaminfer as si
from streaminfer.simulation import arrivals
from streaminfer.testing import ScriptedBackend, run

CAP, LIMIT_S, COUNT = 64, 0.05, 2000


def takes_s(size):
    return 0.004 + 0.00025 * size


def on_time(shapes, load, policy):
    """Return the share of Poisson arrivals that are on time; the load is a share of the throughput of full batches."""
    trace = arrivals.poisson(load * CAP / takes_s(CAP), COUNT, 5)
    chosen = np.random.default_rng(6).integers(0, shapes, COUNT)

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=CAP, policy=policy, max_queue_size=10_000)
        async with si.Stack(batcher, ScriptedBackend(duration_s=takes_s), clock=loop.clock) as service:

            async def caller(at, shape):
                await asyncio.sleep(at - loop.time())
                await service(np.zeros(1 + shape, np.float32), timeout_s=LIMIT_S)

            calls = [caller(at, shape) for at, shape in zip(trace.tolist(), chosen.tolist(), strict=True)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        return sum(not isinstance(answer, Exception) for answer in answers) / COUNT

    return run(main)


@pytest.mark.parametrize(("shapes", "load", "least"), [(2, 1.0, 0.91), (4, 0.8, 0.88), (4, 1.3, 0.66)])
def test_shapes_at_capacity_share_the_device(shapes, load, least):
    """At capacity, requests of each shape leave the device to the other shapes.

    A plan for one shape alone ends batches early to save their first requests: then .87, .76 and .64 are on time.
    """
    ours = on_time(shapes, load, "lookahead")

    assert ours >= least
    assert ours > on_time(shapes, load, "greedy") + 0.05
