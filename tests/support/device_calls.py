"""Batchers of one device, and their calls."""

import asyncio

import streaminfer as si

__all__ = ["ask", "batcher", "call_at_random", "failing_at_random", "settle"]


def batcher(loop, device, model, **options):
    """Wrap a model in a batcher of the device, on the loop's clock."""
    settings = {"max_batch_size": 8, "slo_s": 0.1, "stack": False, "clock": loop.clock} | options
    return si.AdaptiveBatcher(device=device, **settings).wrap(model)


def ask(service, **options):
    """Start a call; return its future."""
    return asyncio.ensure_future(service.call(si.Request(1.0, **options)))


async def settle(calls):
    """Return the responses and errors of calls."""
    return await asyncio.gather(*calls, return_exceptions=True)


def failing_at_random(rng):
    """Return a step of a model that fails for a tenth of its batches."""

    def step(batch):
        if rng.random() < 0.1:
            raise RuntimeError("broken")
        return list(batch.inputs)

    return step


async def call_at_random(rng, services, *, calls, pause_s):
    """Call services at random instants, and cancel some calls; return responses and errors once nothing runs."""
    made = []
    for _ in range(calls):
        await asyncio.sleep(rng.expovariate(1 / pause_s))
        made.append(ask(rng.choice(services)))
        if rng.random() < 0.1:
            rng.choice(made).cancel()
    ends = await settle(made)
    await asyncio.sleep(1.0)  # batches whose callers have left
    return ends
