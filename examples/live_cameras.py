"""Cameras that deliver more frames than the face detector can process; results are from fresh frames nevertheless.

    python examples/live_cameras.py [--cameras 16] [--seconds 10]

Every camera plays one clip at its own rate, whether or not its frames are processed. A session sends the newest frame
of each camera in turn; it drops and counts a frame when a newer one arrives. Needs ``av`` and ``onnxruntime``.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import streaminfer as si
from streaminfer.streams import Frame, LatestOnly, StreamSession, StreamSessionStatistics

ASSETS = Path(__file__).parent / "assets"
MAX_AGE_S = 0.5


async def camera(pictures: Sequence[Any], rate: float, frames: int, service: si.Stack) -> AsyncIterator[Frame]:
    """Play a clip in a loop.

    Args:
        pictures: pictures of the clip in the format of the model.
        rate: frames per second.
        frames: number of frames to play.
        service: service whose clock gives the capture times.
    """
    begun_ns = service.clock()
    for number in range(frames):
        due_ns = begun_ns + round(number / rate * 1e9)
        await asyncio.sleep((due_ns - service.clock()) / 1e9)
        yield Frame(pictures[number % len(pictures)], captured_ns=due_ns, position_s=number / rate)


async def watch(
    service: si.Stack, pictures: Sequence[Any], rate: float, *, cameras: int, seconds: float
) -> StreamSessionStatistics:
    """Send the frames of some cameras to a service, and print their outcomes.

    Args:
        service: service that takes a picture.
        pictures: pictures that each camera plays.
        rate: frames per second of each camera.
        cameras: number of cameras.
        seconds: duration.
    """
    async with StreamSession(service, policy=LatestOnly(), max_age_s=MAX_AGE_S) as session:
        for number in range(cameras):
            session.add(camera(pictures, rate, round(rate * seconds), service), stream_id=f"camera {number}")
        async for result in session:
            if result.error is not None:
                print(f"{result.stream_id}: frame {result.number}: {result.error!r}")
        return session.statistics()


async def main(cameras: int, seconds: float) -> None:
    """Play the clip of the repository on some cameras."""
    from demo.faces import FULL, normalize  # noqa: PLC0415 - with the modules that only this needs
    from demo.video import load_frames  # noqa: PLC0415

    clip = load_frames(ASSETS / "astronaut_pan.mp4", FULL.size)
    pictures = [normalize(picture) for picture in clip.pixels]
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), si.OnnxBackend(ASSETS / FULL.file)) as service:
        statistics = await watch(service, pictures, clip.rate, cameras=cameras, seconds=seconds)
    print(f"{statistics.received} frames: {statistics.delivered} delivered, {statistics.failed} failed")
    print("dropped:", ", ".join(f"{count} {reason}" for reason, count in statistics.dropped.items()) or "none")
    print(f"age of results: {statistics.ages}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cameras", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    asyncio.run(main(options.cameras, options.seconds))
