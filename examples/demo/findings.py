"""What a trial finds out: steps of a ramp, and holds."""

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.faces import Face
from demo.machine import CpuUse
from demo.meter import Meter
from demo.services import Way
from streaminfer.telemetry import TelemetryStatistics

__all__ = ["ENOUGH", "Hold", "Search", "Step"]

ENOUGH = 0.99
"""The share of chunks that has to be on time."""


@attrs.frozen
class Step:
    """One number of microphones, tried.

    Attributes:
        microphones: how many.
        share_on_time: of the chunks that were due.
        held: a hold, not a step of the ramp.
    """

    microphones: int
    share_on_time: float
    held: bool


@attrs.frozen(eq=False, kw_only=True)
class Hold:
    """Several seconds with one number of microphones, and all that is known about them.

    Attributes:
        way: how the voice detector was served.
        microphones: how many.
        seconds: how long, a hold that was given up early included.
        began_ns: monotonic instant of its beginning.
        chunks: what became of them.
        pictures: what became of the cameras' frames; ``None`` without cameras.
        cpu: who used the processors.
        voice: telemetry of the voice detector.
        heard: the speech probabilities, by microphone, NaN where a chunk was lost.
        faces: the faces found, by number of the frame.
    """

    way: Way
    microphones: int
    seconds: float
    began_ns: int
    chunks: Meter
    pictures: Meter | None
    cpu: CpuUse
    voice: TelemetryStatistics
    heard: list[NDArray[np.float32]]
    faces: dict[int, list[Face]]

    @property
    def enough(self) -> bool:
        """Whether enough chunks were on time."""
        return self.chunks.share_on_time >= ENOUGH

    @property
    def cpu_per_chunk_s(self) -> float:
        """Processor time for one chunk, microphones and event loop included, the face detector's thread left out."""
        return (self.cpu.process_s - self.cpu.faces_s) / max(self.chunks.ended, 1)


@attrs.frozen
class Search:
    """How the number of microphones was found.

    Attributes:
        steps: everything that was tried, in order.
        hold: the largest that held; where none did, the last one.
    """

    steps: list[Step]
    hold: Hold
