"""A real RTSP camera that is killed and restarted, a session whose consumer pauses, and a real face detector."""

import asyncio
import importlib
from pathlib import Path

import attrs
import numpy as np
import pytest
from servers.rtsp_server import RATE, RtspServer
from waiting import until

import streaminfer as si
from streaminfer.streams import LatestOnly, Reconnect, StreamSession, VideoSource

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def detector(monkeypatch):
    """Return BlazeFace as in the examples: its input size, its model, and a function to find faces in its outputs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    faces = importlib.import_module("demo.faces")
    anchors = faces.FULL.anchors()
    model = si.OnnxBackend(EXAMPLES / "assets" / faces.FULL.file, warmup=(1,))
    find = lambda outputs: faces.find_faces(outputs["boxes"], outputs["scores"], anchors)  # noqa: E731
    return (faces.FULL.size, faces.FULL.size), model, find


@pytest.fixture
def server():
    with RtspServer(EXAMPLES / "assets" / "astronaut_pan.mp4") as server:
        yield server


async def scaled(source):
    """Yield frames with pictures in -1…1, as the detector expects them."""
    async for frame in source:
        yield attrs.evolve(frame, inputs=frame.inputs.astype(np.float32) / 127.5 - 1)


def test_results_continue_after_the_camera_was_killed(server, detector):
    """Faces are found before and after the kill, no backlog builds up, and each picture is counted once."""
    size, model, find_faces = detector

    async def main():
        source = VideoSource(server.url, size=size, timeout_s=20.0, reconnect=Reconnect(first_s=0.02, max_s=0.1))
        batcher = si.AdaptiveBatcher(max_batch_size=1)
        async with source, si.Stack(batcher, model) as service:
            session = StreamSession(service, policy=LatestOnly())
            results = session(scaled(source))
            taken = [await anext(results) for _ in range(10)]
            server.kill()
            while source.statistics().last_error is None:
                await asyncio.wait([reader := asyncio.ensure_future(anext(results))], timeout=0.05)
                if reader.done():
                    taken.append(reader.result())
                else:
                    reader.cancel()
                    await asyncio.wait([reader])
            await asyncio.to_thread(server.restart)
            behind = [await anext(results) for _ in range(10)]

            def dropped():
                return source.statistics().dropped + session.statistics().dropped.get("stale", 0)

            before = dropped()
            await until(lambda: dropped() >= before + RATE)  # a second of pictures that the consumer did not take
            fresh = [await anext(results) for _ in range(6)]
            await results.aclose()
            return taken, behind, fresh, session.statistics(), source.statistics()

    taken, behind, fresh, statistics, of_source = asyncio.run(main())
    results = [*taken, *behind, *fresh]
    assert all(result.error is None for result in results)
    for part in (taken, behind):
        assert sum(bool(find_faces(result.outputs)) for result in part) >= len(part) // 2
    assert of_source.reconnects >= 1
    instants = [result.captured_ns for result in results]
    assert instants == sorted(instants)
    assert all(result.age_s >= 0 for result in results)
    # one result and two pictures may have waited for the consumer: the next picture comes after all dropped pictures
    assert fresh[3].position_s > behind[-1].position_s + (RATE + 0.5) / RATE
    dropped = sum(statistics.dropped.values())
    assert statistics.received == statistics.delivered + statistics.failed + dropped
    assert statistics.failed == 0
    assert statistics.delivered == len(results)
    assert (statistics.waiting, statistics.in_flight) == (0, 0)
    assert of_source.delivered - statistics.received in {0, 1}  # one not yet taken when the session closed
