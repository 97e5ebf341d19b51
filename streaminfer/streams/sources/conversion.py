"""Conversion of decoded pictures and sound to frames with the arrays that a model wants."""

import math
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from streaminfer.streams.frame import Frame
from streaminfer.streams.policies import RateSelector
from streaminfer.streams.sources.chunking import MAX_SILENCE_NS, Chunker, GapDetector
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.source import Counters
from streaminfer.streams.sources.timestamps import Stamp, TimestampRepair

__all__ = ["FrameMaker", "PictureConverter"]

ROUNDING_NS = 1_000_000
"""Containers round timestamps to milliseconds."""
BILINEAR, AREA = 2, 32
"""FFmpeg's numbers of scaling methods."""
ACCURATE = 0x40000
"""FFmpeg's flag for a slower conversion that fills each row completely."""
UNWRITTEN_PIXELS = range(1, 5)
"""Numbers of pixels after the last full 16 of a row that FFmpeg does not write in ``FOUR_BYTES`` formats."""
FOUR_BYTES = frozenset({"rgba", "bgra"})
PIXELS_AT_ONCE = 16
"""Pixels that FFmpeg writes at once in these formats, even beyond the end of a row, into the next row."""
COLORS = frozenset({"rgb24", "bgr24", "rgba", "bgra"})
PACKED = {"rgb24": 3, "bgr24": 3, "rgba": 4, "bgra": 4, "gray": 1}
"""Bytes per pixel of formats with one plane."""
SHRUNK_FORMATS = {"yuv420p": "yuv422p", "yuvj420p": "yuvj422p"}
"""Formats in which pictures shrink before the color conversion: as much color as in one step, in half the time."""


class PictureConverter:
    """Converts pictures; only one thread at a time may use it.

    Args:
        av: PyAV.
        target: what the model takes.
        threads: FFmpeg's threads per picture, unless it must write the rows in order; 0: FFmpeg decides.
    """

    def __init__(self, av: ModuleType, target: VideoFormat, *, threads: int = 0) -> None:
        make = av.video.reformatter.VideoReformatter  # which keeps its tables between frames
        self._reformat, self._shrink = make().reformat, make().reformat
        self._target = target
        self._threads = threads

    def __call__(self, frame: Any) -> np.ndarray[Any, Any]:
        """Return a picture as a contiguous array, turned upright if the file states its rotation."""
        target = self._target
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        width, height = target.size or (frame.width, frame.height)
        if target.size is not None and quarter_turns % 2:
            width, height = height, width
        if target.pixel_format == "yuv420p":  # two pixels share a color
            width, height = width + width % 2, height + height % 2
        # AREA takes the mean of the covered pixels: faster than FFmpeg's other methods to shrink, and without aliasing
        shrinks = width <= frame.width and height <= frame.height
        interpolation = AREA if shrinks else BILINEAR
        intermediate = SHRUNK_FORMATS.get(frame.format.name) if shrinks and target.pixel_format in COLORS else None
        if intermediate is not None and (width, height) != (frame.width, frame.height):
            frame = self._shrink(frame, width, height, intermediate, interpolation=interpolation, threads=self._threads)
        threads = self._threads
        if target.pixel_format in FOUR_BYTES:
            if width % 16 in UNWRITTEN_PIXELS:
                interpolation |= ACCURATE
            if width % PIXELS_AT_ONCE:
                threads = 1  # FFmpeg must write pixels beyond a row before it writes the next row, not after
        converted = self._reformat(
            frame, width, height, target.pixel_format, interpolation=interpolation, threads=threads
        )
        if converted is not frame and converted.planes[0].line_size == width * PACKED.get(target.pixel_format, 0):
            # its only plane has no gaps and no other owner: no copy
            shape = (height, width) if target.pixel_format == "gray" else (height, width, PACKED[target.pixel_format])
            array: np.ndarray[Any, Any] = np.frombuffer(converted.planes[0], np.uint8, math.prod(shape)).reshape(shape)
        else:
            array = np.ascontiguousarray(converted.to_ndarray())
        return _rotated(array, quarter_turns, target.pixel_format) if quarter_turns else array


class AudioAssembler:
    """Resamples one stream of sound and cuts it into chunks.

    A short gap becomes silence; a longer gap becomes a discontinuity. The end of each contiguous part is padded.

    Attributes:
        silence_ns: silence that replaced lost packets, in nanoseconds.
    """

    def __init__(self, av: ModuleType, target: AudioFormat) -> None:
        self._av = av
        self._target = target
        self._sample_format = {"float32": "fltp", "int16": "s16p"}[target.dtype]
        self._empty = np.empty((target.channels, 0), target.dtype)
        self._chunker = Chunker(target.chunk, target.hop_size, target.sample_rate, self._empty)
        self._gaps = GapDetector()
        self._input = "", "", target.sample_rate
        self._resampler: Any = None
        self._mix_peak = 1.0  # peak of its mix if all inputs are 1
        self._samples_in, self._samples_out = 0, 0  # samples that went into the resampler, and that came out
        self._end = (0, 0)
        self.silence_ns = 0

    def push(self, frame: Any, stamp: Stamp) -> list[Frame]:
        """Return the chunks that a decoded frame completes; its stamp has the position of its first sample."""
        length_ns = _duration_ns(frame)
        gap_ns = self._gaps.gap_ns(stamp.media_ns, length_ns)
        chunks: list[Frame] = []
        if stamp.discontinuity or gap_ns > MAX_SILENCE_NS:
            chunks += self.flush()
        elif gap_ns:
            chunks += self._end_resampler()
            silence = np.zeros(
                (len(self._empty), gap_ns * self._target.sample_rate // 1_000_000_000), self._empty.dtype
            )
            chunks += self._chunker.push(silence, stamp.captured_ns - length_ns, stamp.media_ns)
            self.silence_ns += gap_ns
        input_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if input_format != self._input:
            chunks += self._end_resampler()
            self._input = input_format
        if self._resampler is None:
            self._resampler = self._av.AudioResampler(
                format=self._sample_format,
                layout="mono" if frame.layout.nb_channels == 1 else "stereo",
                rate=self._target.sample_rate,
            )
            self._mix_peak = self._measure_mix(frame) if self._target.dtype == "float32" else 1.0
            self._samples_in = self._samples_out = 0
        self._samples_in += frame.samples
        self._end = stamp.captured_ns, stamp.media_ns + length_ns
        return chunks + self._chunk(self._resampler.resample(frame))

    def flush(self) -> list[Frame]:
        """Return the last chunks of a contiguous part, the last one padded with zeros."""
        return self._end_resampler() + self._chunker.flush()

    def _end_resampler(self) -> list[Frame]:
        resampler, self._resampler = self._resampler, None
        return self._chunk([] if resampler is None else resampler.resample(None))

    def _chunk(self, frames: list[Any]) -> list[Frame]:
        arrays = [frame.to_ndarray() for frame in frames if frame is not None]  # nothing to flush is [None]
        if not arrays:
            return []
        samples = np.concatenate(arrays, axis=1)
        if self._mix_peak > 1.0:
            samples /= self._mix_peak
        channels = self._target.channels
        if len(samples) < channels:
            samples = np.repeat(samples, channels, axis=0)
        elif len(samples) > channels:  # FFmpeg's mix of floats is 3 dB louder
            samples = samples.mean(axis=0, keepdims=True).astype(samples.dtype)
        self._samples_out += samples.shape[1]
        captured_ns, end_ns = self._end
        taken_ns = self._samples_in * 1_000_000_000 // self._input[2]
        # the resampler has not returned all that it has taken in
        buffered_ns = max(0, taken_ns - self._samples_out * 1_000_000_000 // self._target.sample_rate)
        return self._chunker.push(samples, captured_ns - buffered_ns, end_ns - buffered_ns)

    def _measure_mix(self, frame: Any) -> float:
        """Return the peak of a mix of sound in the layout of a frame; FFmpeg limits this peak for integers only."""
        count = frame.layout.nb_channels
        if count <= 2:
            return 1.0
        full_scale = self._av.AudioFrame.from_ndarray(np.ones((1, count), np.float32), "flt", frame.layout.name)
        full_scale.sample_rate = frame.sample_rate
        resampler = self._av.AudioResampler(format="fltp", layout="stereo", rate=frame.sample_rate)
        return float(resampler.resample(full_scale)[0].to_ndarray().max())


class FrameMaker:
    """Stamps, selects, converts and chunks the frames of one stream.

    Args:
        av: PyAV.
        target: what the model takes.
        counters: counts the skipped pictures.
        live: the arrivals follow the clock of the medium.
        converts: convert pictures to arrays here; otherwise they are converted when a reader takes them.

    Attributes:
        repair: timeline of the medium.
    """

    def __init__(
        self, av: ModuleType, target: VideoFormat | AudioFormat, counters: Counters, *, live: bool, converts: bool
    ) -> None:
        self._counters = counters
        self.repair = TimestampRepair(live=live)
        rate = target.rate if isinstance(target, VideoFormat) else None
        self._selector = None if rate is None else RateSelector(rate, ROUNDING_NS)
        self._sound = AudioAssembler(av, target) if isinstance(target, AudioFormat) else None
        self._picture = PictureConverter(av, target) if isinstance(target, VideoFormat) and converts else None

    def make(self, frame: Any, pts: int | None, time_base: Fraction | None, arrival_ns: int) -> list[Frame]:
        """Return the frames that a decoded frame completes; none if it exceeds the rate that the model wants."""
        length_ns = _duration_ns(frame) if self._sound is not None else 0
        stamp = self.repair.stamp(pts, time_base, length_ns, arrival_ns)
        if self._selector is not None and not self._selector.takes(stamp.media_ns, begins=stamp.discontinuity):
            self._counters.skipped += 1
            return []
        if self._sound is None:
            inputs = frame if self._picture is None else self._picture(frame)
            return [Frame(inputs, stamp.captured_ns, stamp.media_ns / 1e9, stamp.discontinuity)]
        frames = self._sound.push(frame, stamp)
        self._counters.silence_s = self._sound.silence_ns / 1e9
        return frames

    def flush(self) -> list[Frame]:
        """Return the last chunks of the sound."""
        return [] if self._sound is None else self._sound.flush()


def _rotated(array: np.ndarray[Any, Any], quarter_turns: int, pixel_format: str) -> np.ndarray[Any, Any]:
    """Return a picture after quarter turns counterclockwise."""
    if pixel_format != "yuv420p":
        return np.ascontiguousarray(np.rot90(array, quarter_turns))
    height, width = len(array) * 2 // 3, array.shape[1]
    luma, chroma = array[:height], array[height:].reshape(2, height // 2, width // 2)
    planes = [np.rot90(plane, quarter_turns) for plane in (luma, *chroma)]
    return np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1])


def _duration_ns(frame: Any) -> int:
    """Return the duration of a decoded frame of sound."""
    return int(frame.samples * 1_000_000_000 // frame.sample_rate)
