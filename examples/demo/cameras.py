"""Live cameras: a frame every 1/24 s, whatever became of the last one, and the faces found in it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import streaminfer as si
from demo.faces import FULL, Face, find_faces
from demo.meter import Meter
from demo.services import face_service
from demo.video import Frames, normalize

__all__ = ["Cameras", "running_cameras"]


class Cameras:
    """Some cameras that all play one clip, over and over, each from another place in it.

    A frame that is not answered when the next one is due is dropped: it is no longer of use.

    Args:
        service: answers a normalized frame with ``{"boxes": …, "scores": …}``.
        frames: what they play.
        count: how many.

    Attributes:
        meter: counts the frames that are due from now on; replace it to begin a new window.
        faces: the faces found in each frame of the clip that was answered, by its number.
    """

    def __init__(self, service: si.Stack, frames: Frames, count: int) -> None:
        self.period_ns = round(1e9 / frames.rate)
        self.meter = Meter(self.period_ns)
        self.faces: dict[int, Sequence[Face]] = {}
        self._service = service
        self._frames = frames
        self._anchors = FULL.anchors()
        self._running = True
        self._tasks = [asyncio.create_task(self._play(number, count)) for number in range(count)]

    async def stop(self) -> None:
        """Ends every stream after its present frame."""
        self._running = False
        await asyncio.gather(*self._tasks)

    async def _play(self, camera: int, cameras: int) -> None:
        clock = self._service.clock
        place = camera * len(self._frames) // cameras
        due_ns = clock() + camera * self.period_ns // cameras
        while self._running:
            await asyncio.sleep((due_ns - clock()) / 1e9)
            meter = self.meter
            meter.sent += 1
            try:
                response = await self._service.call(
                    si.Request(
                        normalize(self._frames.pixels[place]),
                        deadline_ns=due_ns + self.period_ns,
                        stream_id=("camera", camera),
                    )
                )
            except si.StreamInferError as error:
                meter.failed(error)
            else:
                meter.answered(clock() - due_ns)
                outputs = response.outputs
                self.faces[place] = find_faces(outputs["boxes"], outputs["scores"], self._anchors)
            place = (place + 1) % len(self._frames)
            due_ns += self.period_ns


@asynccontextmanager
async def running_cameras(frames: Frames | None, count: int) -> AsyncIterator[Cameras | None]:
    """Some cameras and the service that they send to; ``None`` where there are none."""
    if not count or frames is None:
        yield None
        return
    async with face_service() as service:
        cameras = Cameras(service, frames, count)
        try:
            yield cameras
        finally:
            await cameras.stop()
