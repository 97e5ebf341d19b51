"""From decoded pictures and sound to the frames of a source."""

from types import ModuleType
from typing import Any

from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import AudioAssembler, PictureConverter, duration_ns
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.pacing import RateLimiter
from streaminfer.streams.sources.source import Counters
from streaminfer.streams.sources.timestamps import Rational, Stamp, TimestampRepair

__all__ = ["FrameMaker"]


class FrameMaker:
    """Stamps, selection, conversion and chunking of one stream.

    Args:
        av: PyAV.
        wanted: what the model takes.
        counters: where what was skipped is counted.
        live: the arrivals follow the clock of the medium.
        converts: make arrays of pictures; else they are converted when a reader takes them.
    """

    def __init__(
        self, av: ModuleType, wanted: VideoFormat | AudioFormat, counters: Counters, *, live: bool, converts: bool
    ) -> None:
        self._counters = counters
        self._repair = TimestampRepair(live=live)
        self._limiter = RateLimiter(wanted.rate) if isinstance(wanted, VideoFormat) and wanted.rate else None
        self._sound = AudioAssembler(av, wanted) if isinstance(wanted, AudioFormat) else None
        self._picture = PictureConverter(av, wanted) if isinstance(wanted, VideoFormat) and converts else None

    def restart(self) -> None:
        """Continue with another connection."""
        self._repair.restart()

    def stamp(self, frame: Any, pts: int | None, time_base: Rational | None, arrival_ns: int) -> Stamp | None:
        """Return the stamp of a decoded frame; ``None``: it is beyond the rate that the model wants."""
        length_ns = duration_ns(frame) if self._sound is not None else 0
        stamp = self._repair.stamp(pts, time_base, length_ns, arrival_ns)
        if self._limiter is not None and not self._limiter.admits(stamp.media_ns, due=stamp.starts_anew):
            self._counters.skipped += 1
            return None
        return stamp

    def make(self, frame: Any, stamp: Stamp) -> list[Frame]:
        """Return the frames that a decoded frame completes."""
        if self._sound is None:
            inputs = frame if self._picture is None else self._picture(frame)
            return [Frame(inputs, stamp.captured_ns, stamp.media_ns / 1e9, stamp.starts_anew)]
        frames = self._sound.push(frame, stamp)
        self._counters.silence_ns = self._sound.silence_ns
        return frames

    def flush(self) -> list[Frame]:
        """Return what is left of the sound."""
        return [] if self._sound is None else self._sound.flush()
