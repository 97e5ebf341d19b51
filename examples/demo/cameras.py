"""Live cameras of 24 frames per second each, of which only the newest frame counts, and the faces found in them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import streaminfer as si
from demo.faces import FULL, Face, find_faces, normalize
from demo.live import SessionStreams
from demo.services import face_service
from demo.video import Frames
from streaminfer.streams import Frame, LatestOnly, StreamResult, StreamSession

__all__ = ["MAX_AGE_S", "Cameras", "Seen", "running_cameras"]

MAX_AGE_S = 0.1
"""An older picture of a moving face is of no use."""


class Seen(NamedTuple):
    """A frame with a result."""

    camera: int
    captured_ns: int
    age_s: float


class Cameras:
    """Cameras that all play one clip, over and over, each from another place in it.

    Args:
        service: returns ``{"boxes": …, "scores": …}`` for a normalized frame.
        frames: clip that they play.

    Attributes:
        live: their streams.
        faces: the faces found in each frame of the clip with a response, by the number of the frame.
        seen: every frame with a result.
    """

    def __init__(self, service: si.Stack, frames: Frames) -> None:
        session = StreamSession(service, policy=LatestOnly(), max_age_s=MAX_AGE_S)
        self.live = SessionStreams(session, round(1e9 / frames.rate), service.clock, self._take)
        self.faces: dict[int, Sequence[Face]] = {}
        self.seen: list[Seen] = []
        self._clock = service.clock
        self._frames = frames
        self._anchors = FULL.anchors()

    def add(self, camera: int, place: int = 0, times: int = 1) -> None:
        """Let a camera join.

        Args:
            camera: number of the camera.
            place: number of its first frame in the clip.
            times: factor of its frame rate over that of others.
        """
        self.live.add(self._play(place, times), camera)

    async def _play(self, place: int, times: int) -> AsyncIterator[Frame]:
        pixels, rate = self._frames.pixels, self._frames.rate
        due_ns = self._clock()
        while True:
            await asyncio.sleep((due_ns - self._clock()) / 1e9)
            yield Frame(normalize(pixels[place]), due_ns, position_s=place / rate)
            place = (place + 1) % len(pixels)
            due_ns += round(1e9 / (rate * times))

    def _take(self, result: StreamResult) -> None:
        place = round((result.position_s or 0.0) * self._frames.rate)
        outputs = result.outputs
        self.faces[place] = find_faces(outputs["boxes"], outputs["scores"], self._anchors)
        self.seen.append(Seen(int(str(result.stream_id)), result.captured_ns, result.age_s))


@asynccontextmanager
async def running_cameras(frames: Frames | None, count: int) -> AsyncIterator[Cameras | None]:
    """Run some cameras and their service; yields ``None`` if there are no cameras."""
    if not count or frames is None:
        yield None
        return
    async with face_service() as service:
        cameras = Cameras(service, frames)
        for camera in range(count):
            cameras.add(camera, camera * len(frames) // count)
        try:
            yield cameras
        finally:
            await cameras.live.stop()
