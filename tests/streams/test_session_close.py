"""Closing a session at each step of the event loop around the completion of a request."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.streams import LatestOnly, StreamSession
from streaminfer.testing import ScriptedBackend, run


async def endless():
    while True:
        yield 1.0
        await asyncio.sleep(0.004)


@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("steps", range(6))
def test_a_session_closes_when_a_request_has_just_completed(streams, steps):
    """A sender that becomes free behind the last stream ends, too."""

    async def main(loop):
        layers = (si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(duration_s=0.01))
        async with si.Stack(*layers, clock=loop.clock) as service:
            session = StreamSession(service, policy=LatestOnly())
            for _ in range(streams):
                session.add(endless())
            consumer = asyncio.create_task(consume(session))
            await asyncio.sleep(0.02)  # where the second request completes
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(5.0):
                await session.aclose()
            await consumer
        return session.statistics()

    async def consume(session):
        async for _ in session:
            pass

    counters = run(main)
    assert counters.open_streams == 0
    assert counters.received == counters.delivered + sum(counters.dropped.values())
