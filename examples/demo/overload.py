"""Temporary overload of the face detector by cameras: ages of results, drops, and the share of each camera.

Some cameras send all the time. In the middle third of the trial others join. Together they then send about twice
as many frames as the detector completes on this machine, measured just before. One of them sends five times as many as
each of the others. The policy is latest-only: while a camera waits for its turn, a newer frame replaces an older one.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from demo.cameras import Cameras
from demo.services import face_service
from demo.video import Frames
from demo.visitors import capacity_of
from streaminfer.streams import StreamSessionStatistics

__all__ = ["GREED", "Look", "Overload", "overload"]

MEASURE_S = 0.6
CALM = 0.4
"""Frames of the cameras that send all the time, over the frames that the detector completes."""
EXCESS = 2.0
"""Frames of all cameras, over the frames that the detector completes."""
GREED = 5
LOOK_NS = 250_000_000

MakeService = Callable[..., si.Stack]


class Look(NamedTuple):
    """Counters of the session at an instant, in seconds after the beginning."""

    at_s: float
    counters: StreamSessionStatistics


@attrs.frozen(eq=False, kw_only=True)
class Overload:
    """Outcomes of the frames of too many cameras.

    Attributes:
        capacity: frames per second that the detector completes, measured just before.
        rate: frames per second of a camera.
        seconds: duration of the trial; the overload is the middle third.
        calm: number of cameras before and after the overload; they have the lowest numbers.
        most: number of cameras in the overload; the last one is greedy.
        camera: int64[results], the number of the camera of each result.
        captured_s: float64[results], capture time of each frame, in seconds after the beginning.
        age_s: float64[results], age of each result at delivery.
        looks: counters at successive instants.
        total: counters after the end of all streams.
    """

    capacity: float
    rate: float
    seconds: float
    calm: int
    most: int
    camera: NDArray[np.int64]
    captured_s: NDArray[np.float64]
    age_s: NDArray[np.float64]
    looks: list[Look]
    total: StreamSessionStatistics

    @property
    def load(self) -> float:
        """Frames captured in the overload, over the frames that the detector completes."""
        return (self.most - 1 + GREED) * self.rate / self.capacity

    @property
    def shares(self) -> NDArray[np.float64]:
        """Results per second of each camera in the overload; the last camera is the greedy one."""
        return np.bincount(self.camera[self._third == 1], minlength=self.most) / (self.seconds / 3)

    @property
    def fairness(self) -> float:
        """Jain's index over the cameras that send at the same rate: 1 if all get the same, 1/n if one gets all."""
        shares = self.shares[:-1]
        return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else 0.0

    def ages_of(self, third: int) -> NDArray[np.float64]:
        """Return the ages of results for frames captured before, in or after the overload: 0, 1 or 2."""
        ages: NDArray[np.float64] = self.age_s[self._third == third]
        return ages

    @property
    def _third(self) -> NDArray[np.int64]:
        return (self.captured_s * 3 / self.seconds).astype(np.int64)


async def overload(
    frames: Frames, seconds: float, say: Callable[[str], None], make_service: MakeService = face_service
) -> Overload:
    """Serve cameras, with an overload in the middle third of the time.

    Args:
        frames: frames that they play.
        seconds: duration of the trial.
        say: called with each line of progress.
        make_service: builds the face detector's stack, with a name.
    """
    say("overload: how many frames a second does the face detector complete?")
    async with make_service("overload") as service:
        capacity = await capacity_of(service, frames, MEASURE_S)
        calm = max(1, round(CALM * capacity / frames.rate))
        most = max(calm + 3, round(EXCESS * capacity / frames.rate) - GREED + 1)
        clock, cameras = service.clock, Cameras(service, frames)
        began_ns = clock()
        looks: list[Look] = []

        async def serve_until(part: float) -> None:
            say(f"overload: cameras for {seconds / 3:.1f} s: {len(cameras.live.session.streams)}")
            end_ns = began_ns + round(part * seconds * 1e9)
            while (now_ns := clock()) < end_ns:
                await cameras.live.wait_until(min(end_ns, now_ns + LOOK_NS))
                looks.append(Look((clock() - began_ns) / 1e9, cameras.live.session.statistics()))

        try:
            for camera in range(calm):
                cameras.add(camera, camera * len(frames) // most)
            await serve_until(1 / 3)
            for camera in range(calm, most):
                cameras.add(camera, camera * len(frames) // most, GREED if camera == most - 1 else 1)
            await serve_until(2 / 3)
            await asyncio.gather(*(cameras.live.session.remove(camera) for camera in range(calm, most)))
            await serve_until(1.0)
        finally:
            await cameras.live.stop()
    return Overload(
        capacity=capacity,
        rate=frames.rate,
        seconds=seconds,
        calm=calm,
        most=most,
        camera=np.array([seen.camera for seen in cameras.seen], np.int64),
        captured_s=np.array([(seen.captured_ns - began_ns) / 1e9 for seen in cameras.seen]),
        age_s=np.array([seen.age_s for seen in cameras.seen]),
        looks=looks,
        total=cameras.live.session.statistics(),
    )
