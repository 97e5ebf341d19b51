"""Batchers of one device, and calls of them."""

import asyncio

import streaminfer as si

__all__ = ["ask", "batcher", "settle"]


def batcher(loop, device, model, **options):
    """A model behind a batcher on the device, on the loop's clock."""
    settings = {"max_batch_size": 8, "slo_s": 0.1, "stack": False, "clock": loop.clock} | options
    return si.AdaptiveBatcher(device=device, **settings).wrap(model)


def ask(service, **options):
    """A call that runs."""
    return asyncio.ensure_future(service.call(si.Request(1.0, **options)))


async def settle(calls):
    """Responses and errors."""
    return await asyncio.gather(*calls, return_exceptions=True)
