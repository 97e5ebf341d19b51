"""Replicas of a recurrent model around one store of streams, in one event loop."""

import asyncio

import numpy as np
from recurrent import recurrent

import streaminfer as si
from streaminfer.serving.ray.moving_streams import MovingStreams
from streaminfer.serving.ray.stream_store import StreamStore

__all__ = ["Fleet", "go_on", "pause"]


class Fleet:
    """Replicas of a recurrent model around one store."""

    def __init__(self, loop, names="ab", store=StreamStore, **options):
        self.store = store(loop.clock)
        self.loop = loop
        self.stacks = {name: self.make(name, **options) for name in names}

    def make(self, name, **options):
        keeper = si.streams.StatefulBackend(recurrent(**options), state={"h": "h2"}, max_streams=4)
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4, slo_s=1.0), keeper)
        return si.Stack(MovingStreams(stack, keeper, self.store, name), clock=self.loop.clock)

    async def __aenter__(self):
        await asyncio.gather(*(stack.start() for stack in self.stacks.values()))
        return self

    async def __aexit__(self, *_):
        await asyncio.gather(*(stack.stop() for stack in self.stacks.values()))

    async def step(self, name, x, stream="s", **options):
        return int(await self.stacks[name]({"x": np.int64(x)}, stream_id=stream, **options))


def pause(moving):
    """Stop the snapshots and claims of a replica, so that it looks dead to the store."""
    for task in moving._tasks:
        task.cancel()


def go_on(moving):
    """Let a paused replica send snapshots and serve claims again."""
    moving._spawn(moving._send_snapshots())
    moving._spawn(moving._serve_claims())
