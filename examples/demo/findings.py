"""Results of measurements: points of a load sweep, seconds of live streams, and visitors served."""

import statistics

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.budget import Budget
from demo.faces import Face
from demo.machine import CpuUse
from demo.meter import Meter
from demo.services import Way
from streaminfer.caching import CacheStatistics, FlightStatistics
from streaminfer.streams import StreamSessionStatistics
from streaminfer.telemetry import TelemetryStatistics

__all__ = [
    "COMPUTED",
    "ENOUGH",
    "KEPT",
    "LOST",
    "SHARED",
    "Counted",
    "Curve",
    "Hold",
    "LoadPoint",
    "Served",
    "Sweep",
    "Uploads",
    "Visited",
]

ENOUGH = 0.99
"""The share of chunks that has to be on time."""
LOST, COMPUTED, SHARED, KEPT = range(4)
"""Outcome of an upload: an error; a response that the model computed for it, one that it computed for an earlier caller
who was still waiting, or one from the cache."""


@attrs.frozen
class LoadPoint:
    """One offered load, measured once.

    Attributes:
        load: offered load, times the calibrated rate.
        microphones: how many made it.
        share_on_time: share of the chunks that were due whose responses came before the next chunk was due.
        p99_s: 99th percentile of latency over all chunks that were due; infinite where more than 1 % were lost.
    """

    load: float
    microphones: int
    share_on_time: float
    p99_s: float


@attrs.frozen
class Curve:
    """One way at all offered loads.

    Attributes:
        way: how the voice detector was served.
        repeats: for each repeat its points, by ascending load.
    """

    way: Way
    repeats: list[list[LoadPoint]]

    def by_load(self) -> list[tuple[LoadPoint, ...]]:
        """Return for each load the points of all repeats."""
        return list(zip(*self.repeats, strict=True))

    def medians(self) -> list[LoadPoint]:
        """Return for each load the medians over the repeats."""
        return [
            LoadPoint(
                points[0].load,
                points[0].microphones,
                statistics.median(point.share_on_time for point in points),
                statistics.median(point.p99_s for point in points),
            )
            for points in self.by_load()
        ]


@attrs.frozen
class Sweep:
    """Both ways at the same offered loads.

    Attributes:
        rate: calibrated rate in chunks a second; a load of 1.
        batched: curve of the batched way.
        unbatched: curve of the best unbatched way.
        cpu: who used the processors meanwhile.
    """

    rate: float
    batched: Curve
    unbatched: Curve
    cpu: CpuUse

    @property
    def curves(self) -> tuple[Curve, Curve]:
        """Batched first."""
        return self.batched, self.unbatched


@attrs.frozen
class Counted:
    """Counts of this library during a hold; a hand-written detector has none.

    Attributes:
        voice: telemetry of the voice detector.
        total: counters of the microphones' session, from the first chunk to the end of the last stream.
    """

    voice: TelemetryStatistics
    total: StreamSessionStatistics


@attrs.frozen(eq=False, kw_only=True)
class Hold:
    """Some seconds with one number of microphones and all cameras, and all that is known about them.

    Attributes:
        way: how the voice detector was served.
        microphones: how many.
        seconds: how long.
        chunks: what became of them.
        pictures: what became of the cameras' frames; ``None`` without cameras.
        cpu: who used the processors.
        counted: by the batched way; ``None``: by hand.
        heard: the speech probabilities, by microphone, NaN where a chunk was lost.
        faces: the faces found, by number of the frame.
    """

    way: Way
    microphones: int
    seconds: float
    chunks: Meter
    pictures: Meter | None
    cpu: CpuUse
    counted: Counted | None
    heard: list[NDArray[np.float32]] = attrs.field(repr=False)
    faces: dict[int, list[Face]] = attrs.field(repr=False)

    @property
    def cpu_per_chunk_s(self) -> float:
        """Processor time for one chunk, microphones and event loop included, the face detector's thread left out."""
        return (self.cpu.process_s - self.cpu.faces_s) / self.cpu.wall_s * self.seconds / max(self.chunks.ended, 1)

    @property
    def cpu_per_picture_s(self) -> float:
        """Processor time of the face detector's thread for one picture; 0 without cameras."""
        ended = 0 if self.pictures is None else self.pictures.ended
        return self.cpu.faces_s / self.cpu.wall_s * self.seconds / max(ended, 1)

    @property
    def fairness(self) -> float:
        """Jain's index over the microphones, of the share of its chunks that each got an answer to."""
        shares = [1 - float(np.isnan(heard).mean()) if len(heard) else 0.0 for heard in self.heard]
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) if any(shares) else 0.0


@attrs.frozen(eq=False)
class Uploads:
    """Who comes when and brings what.

    Attributes:
        rate: visitors a second.
        due_s: float64[uploads], seconds after the beginning, ascending.
        pictures: int64[uploads], the number of the picture.
    """

    rate: float
    due_s: NDArray[np.float64]
    pictures: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def seconds(self) -> float:
        """From the beginning to the last one."""
        return float(self.due_s[-1])

    @property
    def different(self) -> int:
        """How many different pictures are brought."""
        return len(np.unique(self.pictures))

    @property
    def share_repeated(self) -> float:
        """Share of uploads whose picture was brought before: more than these no cache can have."""
        return 1 - self.different / len(self)


@attrs.frozen(eq=False, kw_only=True)
class Served:
    """What one way of serving the visitors brought.

    Attributes:
        name: of the way.
        seconds: until the last one was answered.
        meter: what became of the uploads; latency from when they were due.
        cpu: who used the processors.
        budget: what became of the error budget.
        became: int8[uploads], one of :data:`LOST`, :data:`COMPUTED`, :data:`SHARED` and :data:`KEPT` each.
        cache: what the cache did; ``None`` without one.
        flights: what single flight did; ``None`` without a cache.
    """

    name: str
    seconds: float
    meter: Meter
    cpu: CpuUse
    budget: Budget
    became: NDArray[np.int8]
    cache: CacheStatistics | None
    flights: FlightStatistics | None

    @property
    def cpu_per_request_s(self) -> float:
        """Processor time for one upload, visitors and event loop included."""
        return self.cpu.process_s / max(self.meter.ended, 1)

    def share(self, what: int) -> float:
        """Share of the uploads that became one of the four."""
        return float(np.mean(self.became == what))


@attrs.frozen(eq=False)
class Visited:
    """The same visitors without and with a cache.

    Attributes:
        uploads: who came.
        catalog: how many different pictures there are.
        capacity: pictures a second that the detector answers without a cache, measured just before.
        plain: without a cache.
        cached: with one.
        compared: answers from the cache or shared, held against what the model said without a cache.
        equal: how many of these are the same to the last bit.
    """

    uploads: Uploads
    catalog: int
    capacity: float
    plain: Served
    cached: Served
    compared: int
    equal: int
