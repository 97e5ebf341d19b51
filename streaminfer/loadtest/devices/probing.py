"""`probe`: measures the profile of the device that made a recording, with FFmpeg's own measures."""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_duration
from streaminfer.errors import InvalidInput
from streaminfer.loadtest.devices.delivery import Delivery
from streaminfer.loadtest.devices.filters import FilterStep
from streaminfer.loadtest.devices.graph import FilterGraph
from streaminfer.loadtest.devices.picture_quality import BLOCK, measure_blur, measure_noise
from streaminfer.loadtest.devices.profile import (
    AAC_FRAME,
    OPUS_FRAMES_S,
    OPUS_RATES,
    AudioCodec,
    CameraProfile,
    DeviceProfile,
    MicrophoneProfile,
    VideoCodec,
)
from streaminfer.loadtest.devices.recording import open_recording
from streaminfer.loadtest.devices.timing import SURE, Timing, measure_timing
from streaminfer.streams.sources.location import ffmpeg_errors

__all__ = ["DeviceMeasurement", "probe"]

STANDARD_RATES = (5.0, 7.5, 10.0, 12.5, 15.0, 20.0, 24_000 / 1_001, 24.0, 25.0, 30_000 / 1_001, 30.0, 50.0, 60.0)
MAX_SKEW = 1e-3
"""Largest relative skew of a clock; a larger difference means another rate."""
MEASURE_EVERY = 10
"""Two of this many successive pictures are measured, because FFmpeg measures slower than it decodes."""
PICTURE_MEASURES = {
    "lavfi.siti.si": "spatial_information",
    "lavfi.siti.ti": "temporal_information",
    "lavfi.blur": "blur",
    "lavfi.signalstats.YAVG": "luma",
    "lavfi.signalstats.SATAVG": "saturation",
    "lavfi.signalstats.YDIF": "luma_change",
    "lavfi.signalstats.TOUT": "outliers",
}
"""Means over the pictures, by the name of FFmpeg's frame metadata."""
SOUND_MEASURES = {
    "lavfi.astats.Overall.RMS_level": "rms_db",
    "lavfi.astats.Overall.RMS_peak": "rms_peak_db",
    "lavfi.astats.Overall.Peak_level": "peak_db",
    "lavfi.astats.Overall.Flat_factor": "flat_factor",
    "lavfi.astats.Overall.Peak_count": "peak_count",
    "lavfi.astats.Overall.Number_of_samples": "samples",
    "lavfi.astats.1.Crest_factor": "crest_factor",
    "lavfi.r128.I": "loudness_lufs",
    "lavfi.r128.LRA": "loudness_range",
}
"""Values at the end of the sound, by the name of FFmpeg's frame metadata."""
CLIPPED = 1e-4
"""Clipping needs more than this share of the samples at the highest level."""
FLAT_DB = 1.5
"""Clipping also needs a flat factor above this. FFmpeg measures runs at the highest level; a pure tone has none."""
WINDOW_S = 0.05
QUIET = 0.05
"""Quantile of the windows that contains noise only."""
SILENCE_DB = -120.0
MIN_BITRATE = 10_000
CODECS: Mapping[str, VideoCodec] = {"h264": "h264", "vp8": "vp8", "vp9": "vp9", "mjpeg": "mjpeg"}


@attrs.frozen
class DeviceMeasurement:
    """Measurement of a device from one of its recordings.

    Attributes:
        profile: a profile that behaves like the device. A recording alone does not show the exposure, the frequency
            band, the drift of the gain or the room, so these have their defaults.
        timing: timing of the frames, or of the packets of sound.
        measures: FFmpeg's measures by name; measures of pictures are means.
        corrupt: number of packets that could not be decoded.
    """

    profile: DeviceProfile
    timing: Timing
    measures: Mapping[str, float]
    corrupt: int


def probe(source: str | Path, *, kind: str = "camera", seconds: float | None = None) -> DeviceMeasurement:
    """Return the profile of the device that made a recording.

    The timestamps must be arrival times, as a receiver writes them: a container with a constant rate hides the jitter.

    Args:
        source: path or URL of the recording.
        kind: ``"camera"`` or ``"microphone"``.
        seconds: seconds of the recording to read; ``None``: all.

    Raises:
        MissingExtra: PyAV is not installed.
        OSError: the recording cannot be opened or read.
        ValueError: FFmpeg finds invalid data, or no stream of this kind.
        InvalidInput: the recording has no frame, pictures with a side below 16 pixels, or sound that changes its
            format.
    """
    av = require("av", extra="media", purpose="probe")
    camera = check_choice("kind", kind, ("camera", "microphone")) == "camera"
    if seconds is not None:
        seconds = check_duration("seconds", seconds, positive=True)
    with ffmpeg_errors(av):
        container, stream = open_recording(av, source, video=camera)
        with container:
            if camera and 0 < min(stream.width, stream.height) < BLOCK:
                found = f"{stream.width} × {stream.height}"
                raise InvalidInput(f"source: expected pictures of at least {BLOCK} × {BLOCK} pixels, got {found}")
            reading = _Reading(av, stream, PICTURE_FILTERS if camera else SOUND_FILTERS)
            for packet in container.demux(stream):
                if not reading.read(packet, seconds):
                    break
            if not reading.frames:
                raise InvalidInput(f"source: expected a recording with frames, got none in {str(source)!r}")
            reading.stamps_s.sort()  # a file may have its timestamps in decoding order
            make = _camera if camera else _microphone
            return make(Path(str(source)).stem or "device", stream, reading)


PICTURE_FILTERS = (
    FilterStep("siti"),
    FilterStep("blurdetect"),
    FilterStep("signalstats", {"stat": "tout"}),
)
SOUND_FILTERS = (
    FilterStep("astats", {"metadata": "1", "reset": "0"}),
    FilterStep("ebur128", {"metadata": "1"}),
)


def _window_filters(sample_rate: int) -> tuple[FilterStep, ...]:
    """Return filters that measure each window separately."""
    window = {"n": str(max(1, round(WINDOW_S * sample_rate))), "p": "0"}
    return FilterStep("asetnsamples", window), FilterStep("astats", {"metadata": "1", "reset": "1"})


class _Reading:
    """Packets and frames of one stream, with their measurements."""

    def __init__(self, av: ModuleType, stream: Any, steps: tuple[FilterStep, ...]) -> None:
        self._av = av
        self._stream = stream
        self._steps = steps
        self._graph: FilterGraph | None = None
        self._windows: FilterGraph | None = None
        self.stamps_s: list[float] = []
        self.key_s: list[float] = []
        self.corrupt = 0
        self.bytes = 0
        self.frames = 0
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self.noise: list[float] = []
        self.blur: list[float] = []
        self.window_db: list[float] = []
        self.samples = 0

    def read(self, packet: Any, seconds: float | None) -> bool:
        """Measure a packet and return whether to read on."""
        if packet.pts is not None:
            stamp_s = float(packet.pts * packet.time_base)
            if seconds is not None and self.stamps_s and stamp_s - self.stamps_s[0] >= seconds:
                last = self._av.Packet()
                last.stream, last.time_base = self._stream, packet.time_base
                self._decode(last)  # an empty packet flushes the frames that the decoder still holds
                return False
            self.stamps_s.append(stamp_s)
            self.bytes += packet.size
            if packet.is_keyframe:
                self.key_s.append(stamp_s)
        self._decode(packet)
        return True

    def _decode(self, packet: Any) -> None:
        try:
            frames = packet.decode()
        except self._av.FFmpegError:  # decoders raise several types for corrupt data
            self.corrupt += 1
            return
        for frame in frames:
            self.frames += 1
            if isinstance(frame, self._av.VideoFrame):
                place = (self.frames - 1) % MEASURE_EVERY
                if place == 0:
                    gray = frame.reformat(format="gray").to_ndarray()
                    self.noise.append(measure_noise(gray))
                    self.blur.append(measure_blur(gray))
                if place < 2:  # FFmpeg compares a picture with the one before it
                    self._measure(frame, counts=place == 1)
            else:
                self.samples = max(self.samples, frame.samples)  # the first packet of a codec may be shorter
                self._measure(frame, counts=True)
                self._measure_windows(frame)

    def _measure(self, frame: Any, *, counts: bool) -> None:
        if self._graph is None:
            self._graph = FilterGraph(self._av, self._steps, frame)
        elif isinstance(frame, self._av.VideoFrame) and not self._graph.is_for(frame):
            self._graph, counts = FilterGraph(self._av, self._steps, frame), False  # the size changed
        for measured in self._graph.push(frame):
            for key, value in measured.metadata.items() if counts else ():
                self.values[key].append(float(value))

    def _measure_windows(self, frame: Any) -> None:
        if self._windows is None:
            self._windows = FilterGraph(self._av, _window_filters(frame.sample_rate), frame)
        for window in self._windows.push(frame):
            level = float(window.metadata["lavfi.astats.Overall.RMS_level"])
            self.window_db.append(max(level, SILENCE_DB) if math.isfinite(level) else SILENCE_DB)

    def mean(self, key: str) -> float:
        """Return the mean of a measure over the frames where FFmpeg has one."""
        values = [value for value in self.values[key] if math.isfinite(value)]
        return float(np.mean(values)) if values else 0.0

    def last(self, key: str) -> float:
        """Return the last value of a measure; for silence it is `SILENCE_DB`, not infinite."""
        value = self.values[key][-1] if self.values[key] else SILENCE_DB
        return value if math.isfinite(value) else SILENCE_DB


def _delivery(timing: Timing, nominal_period_s: float) -> Delivery:
    skew_ppm = timing.skew_ppm(nominal_period_s) if timing.period_s else 0.0
    if abs(skew_ppm) > MAX_SKEW * 1e6:
        skew_ppm = 0.0
    return Delivery(jitter_s=timing.jitter_s, loss=timing.loss, loss_run=timing.loss_run, skew_ppm=skew_ppm)


def _camera(name: str, stream: Any, reading: _Reading) -> DeviceMeasurement:
    timing = measure_timing(reading.stamps_s)
    measured = 1.0 / timing.period_s if timing.period_s else float(stream.average_rate or 25)
    nearest = min(STANDARD_RATES, key=lambda rate: abs(rate - measured))
    uncertainty = SURE * timing.period_error_s * measured
    rate = nearest if abs(nearest / measured - 1) <= max(MAX_SKEW, uncertainty) else measured
    intervals = np.diff(reading.key_s)
    context = stream.codec_context
    profile = CameraProfile(
        name=name,
        width=context.width + context.width % 2,
        height=context.height + context.height % 2,
        rate=rate,
        noise=min(57.0, float(np.median(reading.noise))),
        blur=float(np.median(reading.blur)),
        codec=CODECS.get(context.name, "h264"),
        bitrate=max(MIN_BITRATE, _bitrate(reading, timing)),
        key_interval_s=float(np.mean(intervals)) if len(intervals) else max(timing.duration_s, 1.0),
        delivery=_delivery(timing, 1.0 / rate),
    )
    measures = {measure: reading.mean(key) for key, measure in PICTURE_MEASURES.items()}
    return DeviceMeasurement(profile, timing, measures, reading.corrupt)


def _microphone(name: str, stream: Any, reading: _Reading) -> DeviceMeasurement:
    measures = {measure: reading.last(key) for key, measure in SOUND_MEASURES.items()}
    # FFmpeg's own RMS_trough is 2 dB too low, because it starts before its window is full
    measures["noise_db"] = float(np.quantile(reading.window_db, QUIET)) if reading.window_db else SILENCE_DB
    # the measured power of the sound includes the noise
    noise, signal = (10 ** (measures[level] / 10) for level in ("noise_db", "rms_db"))
    measures["snr_db"] = 10 * math.log10(max(signal - noise, 1e-12) / max(noise, 1e-12))
    peaks, samples = (max(0.0, measures.pop(name)) for name in ("peak_count", "samples"))
    measures["clipped"] = min(1.0, peaks / max(1.0, samples))  # in silence each sample counts as both peaks
    clips = measures["clipped"] > CLIPPED and measures["flat_factor"] > FLAT_DB
    context = stream.codec_context
    codec: AudioCodec = {"opus": "opus", "aac": "aac"}.get(context.name, "pcm")  # type: ignore[assignment]
    rate = context.sample_rate
    frame_s = AAC_FRAME / rate if codec == "aac" else reading.samples / rate
    if codec == "opus":  # decoders output 48 kHz whatever rate was sent
        frame_s = min(OPUS_FRAMES_S, key=lambda it: abs(it - frame_s))
        rate = rate if rate in OPUS_RATES else OPUS_RATES[-1]
    timing = measure_timing(reading.stamps_s, nominal_period_s=frame_s)
    profile = MicrophoneProfile(
        name=name,
        sample_rate=rate,
        codec=codec,
        bitrate=_bitrate(reading, timing),
        frame_s=min(1.0, max(0.0025, frame_s)),
        noise_dbfs=max(-120.0, min(0.0, measures["noise_db"])),
        clip_dbfs=max(-60.0, min(0.0, measures["peak_db"])) if clips else 0.0,
        delivery=_delivery(timing, frame_s),
    )
    return DeviceMeasurement(profile, timing, measures, reading.corrupt)


def _bitrate(reading: _Reading, timing: Timing) -> int:
    seconds = timing.duration_s + timing.period_s
    return max(500, round(reading.bytes * 8 / seconds)) if seconds else MIN_BITRATE
