"""Results of measurements: points at several loads, seconds of live streams, and visitors served."""

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
"""Share of chunks that must be on time."""
LOST, COMPUTED, SHARED, KEPT = range(4)
"""Outcome of an upload: an error, or a response that was computed for it, computed for an earlier caller that was still
waiting, or stored in the cache."""


@attrs.frozen
class LoadPoint:
    """One offered load, measured once.

    Attributes:
        load: offered load, times the calibrated rate.
        microphones: number of microphones that produced it.
        share_on_time: share of the chunks that were due with a response before the next chunk was due.
        p99_s: 99th percentile of latency over all chunks that were due; infinite if more than 1 % were lost.
    """

    load: float
    microphones: int
    share_on_time: float
    p99_s: float


@attrs.frozen
class Curve:
    """Results of one way at all offered loads.

    Attributes:
        way: how the voice detector was served.
        repeats: points of each repeat, by ascending load.
    """

    way: Way
    repeats: list[list[LoadPoint]]

    def by_load(self) -> list[tuple[LoadPoint, ...]]:
        """Return the points of all repeats for each load."""
        return list(zip(*self.repeats, strict=True))

    def medians(self) -> list[LoadPoint]:
        """Return the medians over the repeats for each load."""
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
    """Results of both ways at the same offered loads.

    Attributes:
        rate: calibrated rate in chunks per second, which is a load of 1.
        batched: curve of the batched way.
        unbatched: curve of the best unbatched way.
        cpu: processor time during the measurement.
    """

    rate: float
    batched: Curve
    unbatched: Curve
    cpu: CpuUse

    @property
    def curves(self) -> tuple[Curve, Curve]:
        """Both curves, batched first."""
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
    """Results of some seconds with a fixed number of microphones and all cameras.

    Attributes:
        way: how the voice detector was served.
        microphones: number of microphones.
        seconds: duration.
        chunks: outcomes of the chunks.
        pictures: outcomes of the cameras' frames; ``None`` without cameras.
        cpu: processor time by user.
        counted: counts of the batched way; ``None`` for the way by hand.
        heard: speech probabilities by microphone, NaN for a lost chunk.
        faces: faces found, by number of the frame.
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
        """Processor time per chunk, with microphones and event loop, without the face detector's thread."""
        return (self.cpu.process_s - self.cpu.faces_s) / self.cpu.wall_s * self.seconds / max(self.chunks.ended, 1)

    @property
    def cpu_per_picture_s(self) -> float:
        """Processor time of the face detector's thread per picture; 0 without cameras."""
        ended = 0 if self.pictures is None else self.pictures.ended
        return self.cpu.faces_s / self.cpu.wall_s * self.seconds / max(ended, 1)

    @property
    def fairness(self) -> float:
        """Jain's index over the microphones, of the share of their chunks with a response."""
        shares = [1 - float(np.isnan(heard).mean()) if len(heard) else 0.0 for heard in self.heard]
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) if any(shares) else 0.0


@attrs.frozen(eq=False)
class Uploads:
    """Uploads of visitors, with their instants and pictures.

    Attributes:
        rate: visitors per second.
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
        """Seconds from the beginning to the last upload."""
        return float(self.due_s[-1])

    @property
    def different(self) -> int:
        """Number of different pictures that are uploaded."""
        return len(np.unique(self.pictures))

    @property
    def share_repeated(self) -> float:
        """Share of uploads with a picture that was uploaded before: the most that a cache can serve."""
        return 1 - self.different / len(self)


@attrs.frozen(eq=False, kw_only=True)
class Served:
    """Results of one way of serving the visitors.

    Attributes:
        name: name of the way.
        seconds: seconds until the last response.
        meter: outcomes of the uploads, with latency from when they were due.
        cpu: processor time by user.
        budget: state of the error budget at the end.
        became: int8[uploads], each one of :data:`LOST`, :data:`COMPUTED`, :data:`SHARED` and :data:`KEPT`.
        cache: counters of the cache; ``None`` without a cache.
        flights: counters of single flight; ``None`` without a cache.
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
        """Processor time per upload, with visitors and event loop."""
        return self.cpu.process_s / max(self.meter.ended, 1)

    def share(self, what: int) -> float:
        """Return the share of the uploads with one of the four outcomes."""
        return float(np.mean(self.became == what))


@attrs.frozen(eq=False)
class Visited:
    """Results for the same visitors without and with a cache.

    Attributes:
        uploads: uploads of the visitors.
        catalog: number of different pictures.
        capacity: pictures per second that the detector completes without a cache, measured just before.
        plain: results without a cache.
        cached: results with a cache.
        compared: number of cached or shared responses that were compared with responses of the model without a cache.
        equal: number of these that are equal to the last bit.
    """

    uploads: Uploads
    catalog: int
    capacity: float
    plain: Served
    cached: Served
    compared: int
    equal: int
