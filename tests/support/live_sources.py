"""Sources and services for tests of streams, in virtual time."""

import asyncio
import contextlib

import streaminfer as si
from streaminfer.streams import Frame


class Camera:
    """Source of numbered frames at a fixed rate, which counts its reads.

    The numbers in ``discontinuities`` are of frames with a discontinuity.

    Args:
        loop: the event loop that gives the time.
        frames: number of frames; ``None`` for no end.
        period_s: seconds between frames.
        error: raised after the last frame.
    """

    def __init__(self, loop, frames=None, period_s=0.01, *, error=None, discontinuities=()):
        self.loop, self.frames, self.period_s, self.error, self.discontinuities = (
            loop,
            frames,
            period_s,
            error,
            discontinuities,
        )
        self.read = 0
        self.closed = 0

    async def __aiter__(self):
        try:
            while self.frames is None or self.read < self.frames:
                if self.period_s:
                    await asyncio.sleep(self.period_s)
                number = self.read
                self.read += 1
                yield Frame(float(number), self.loop.clock(), number * self.period_s, number in self.discontinuities)
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


class States:
    """Store of stream states that records its calls."""

    def __init__(self):
        self.calls = []

    def reset_stream(self, stream_id):
        self.calls.append(("reset", stream_id))

    def end_stream(self, stream_id):
        self.calls.append(("end", stream_id))

    def export_state(self, stream_id):
        raise NotImplementedError

    def import_state(self, stream_id, state):
        raise NotImplementedError


class Service:
    """Service that follows a function, with no batcher and no deadlines of its own.

    Args:
        answer: an async function of the request that returns the outputs.
        states: stream states of a recurrent model.
    """

    def __init__(self, answer, states=None):
        self.answer, self.stream_states = answer, states
        self.requests = []
        self.running = 0
        self.most = 0

    async def call(self, request):
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return si.Response(await self.answer(request))
        finally:
            self.running -= 1


async def echo(request):
    return request.inputs


def others():
    """Return the tasks of the loop except the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


async def settle():
    """Let all ready callbacks run."""
    for _ in range(20):
        await asyncio.sleep(0)


def add_up(statistics):
    """Return whether each frame that arrived is counted once."""
    return statistics.received == (
        statistics.delivered
        + statistics.failed
        + sum(statistics.dropped.values())
        + statistics.waiting
        + statistics.in_flight
    )


@contextlib.asynccontextmanager
async def stack_of(loop, model, **options):
    """Yield a running stack with a batcher around a model."""
    async with si.Stack(si.AdaptiveBatcher(**{"max_batch_size": 4} | options), model, clock=loop.clock) as service:
        yield service
