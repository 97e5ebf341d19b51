"""A real RTSP camera over TCP and UDP: killed, frozen and restarted; test_camera_to_model.py kills it over TCP."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from servers.rtsp_server import RATE, SIZE, RtspServer

from streaminfer.streams import Reconnect, VideoSource

SOON = Reconnect(first_s=0.02, max_s=0.1)


@pytest.fixture(scope="module")
def server():
    with RtspServer() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_behind(server):
    """Check that a test leaves no descriptor, apart from those of the server, which all tests share."""
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    yield
    assert len(list(folder.iterdir())) <= before


def camera(server, transport, timeout_s=2.0):
    return VideoSource(server.url, options={"rtsp_transport": transport}, timeout_s=timeout_s, reconnect=SOON)


def level(frame):
    return round(frame.inputs.mean() / 32)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_camera_delivers_in_order(server, transport):
    """Pictures are in order, each at a multiple of the frame period, and none is from the future."""

    async def main():
        async with camera(server, transport, timeout_s=20.0) as source:
            return [(await anext(source), time.monotonic_ns()) for _ in range(30)], source.statistics()

    frames, statistics = asyncio.run(main())
    assert {frame.inputs.shape for frame, _ in frames} == {(SIZE[1], SIZE[0], 3)}
    assert {level(frame) for frame, _ in frames} == set(range(8))
    positions = [frame.position_s * RATE for frame, _ in frames]
    assert positions == [pytest.approx(round(position), abs=0.4) for position in positions]
    assert all(before < after for before, after in pairwise(positions))
    assert all(frame.captured_ns <= now_ns for frame, now_ns in frames)
    assert (statistics.delivered, statistics.corrupt, statistics.reconnects) == (30, 0, 0)
    assert statistics.connected


@pytest.mark.parametrize(("transport", "end"), [("udp", "kill"), ("tcp", "freeze")])
def test_source_reconnects_after_a_camera_failure(server, transport, end):
    """If its camera is killed or frozen, the source connects again and marks a discontinuity."""

    async def main():
        async with camera(server, transport) as source:
            for _ in range(5):
                before = await anext(source)
            await asyncio.to_thread(getattr(server, end))
            reader = asyncio.ensure_future(_next_start(source))
            while source.statistics().last_error is None:
                assert not reader.done()
                await asyncio.wait([reader], timeout=0.05)
            await asyncio.to_thread(server.restart if end == "kill" else server.thaw)
            after = await reader
            assert after.captured_ns > before.captured_ns
            assert after.position_s > before.position_s
            for _ in range(5):
                await anext(source)
            return source.statistics()

    statistics = asyncio.run(main())
    assert statistics.reconnects >= 1
    assert statistics.delivered >= 11


async def _next_start(source):
    async for frame in source:
        if frame.discontinuity:
            return frame
    raise AssertionError("the source ended")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_close_while_the_camera_is_frozen(server, transport):
    """FFmpeg's timeout ends the hanging read of a frozen camera, so that the source can close."""

    async def main():
        source = camera(server, transport)
        await anext(source)
        server.freeze()
        try:
            await source.aclose()
        finally:
            server.thaw()
        with pytest.raises(StopAsyncIteration):
            await anext(source)

    asyncio.run(main())
