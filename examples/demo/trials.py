"""Some seconds of live microphones and cameras together, with all measurements."""

import asyncio
from collections.abc import Callable

import attrs
import numpy as np

import streaminfer as si
from demo.audio import Clip
from demo.by_hand import DetectorByHand
from demo.cameras import running_cameras
from demo.faces import FULL
from demo.findings import Counted, Hold
from demo.live import SessionStreams
from demo.machine import CpuClock
from demo.microphones import Microphones
from demo.services import Way, detector_by_hand, voice_service
from demo.video import Frames

__all__ = ["Stage", "hold"]

JOINING = (0.25, 0.5, 0.75, 1.0)
"""Share of the microphones after each step: streams join one after the other, as in `load_sweep`."""
JOINING_S = 0.15


@attrs.frozen(eq=False)
class Stage:
    """Common inputs of all trials.

    Attributes:
        clip: clip that microphones play.
        frames: frames that cameras play.
        cameras: number of cameras in every trial.
        say: called with each line of progress.
        make_service: builds the batched voice detector.
        make_by_hand: builds an unbatched one.
    """

    clip: Clip
    frames: Frames | None
    cameras: int
    say: Callable[[str], None]
    make_service: Callable[[Way], si.Stack] = voice_service
    make_by_hand: Callable[[Way], DetectorByHand] = detector_by_hand

    def make_detector(self, way: Way) -> si.Stack | DetectorByHand:
        """Return the voice detector, served in the given way."""
        return self.make_service(way) if way.batched else self.make_by_hand(way)


async def hold(stage: Stage, way: Way, count: int, seconds: float) -> Hold:
    """Serve a number of microphones, and all cameras beside them.

    Args:
        stage: clips to play.
        way: way to serve the voice detector.
        count: number of microphones.
        seconds: duration.
    """
    stage.say(f"{way.name}: {count} microphones and {stage.cameras} cameras for {seconds:g} s")
    async with running_cameras(stage.frames, stage.cameras) as cameras, stage.make_detector(way) as detector:
        microphones = Microphones(detector, stage.clip)
        for part in JOINING:
            microphones.grow_to(round(part * count))
            await asyncio.sleep(JOINING_S)
        cpu = CpuClock(FULL.file)
        crowds = [microphones.live] if cameras is None else [microphones.live, cameras.live]
        chunks, *pictures = await asyncio.gather(*(crowd.measure(seconds) for crowd in crowds))
        use = cpu.read()
        await microphones.stop()
        counted = None
        if isinstance(detector, si.Stack) and isinstance(microphones.live, SessionStreams):
            counted = Counted(detector.statistics()["Telemetry"], microphones.live.session.statistics())
        return Hold(
            way=way,
            microphones=count,
            seconds=seconds,
            chunks=chunks,
            pictures=pictures[0] if pictures else None,
            cpu=use,
            counted=counted,
            heard=[np.frombuffer(heard, np.float32) for heard in microphones.heard],
            faces={} if cameras is None else {place: list(faces) for place, faces in sorted(cameras.faces.items())},
        )
