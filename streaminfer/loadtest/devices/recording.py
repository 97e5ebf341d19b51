"""Turns a good recording into the frames that a device captures, or into a file as a receiver would write it."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance
from streaminfer.errors import InvalidInput
from streaminfer.loadtest.devices.codecs import CODECS, set_up_encoder
from streaminfer.loadtest.devices.delivery import captures
from streaminfer.loadtest.devices.filters import compile_filters
from streaminfer.loadtest.devices.graph import filter_frames
from streaminfer.loadtest.devices.library import device_profile
from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile
from streaminfer.streams.sources.location import ffmpeg_errors

__all__ = ["open_recording", "record", "render"]

TICKS_PER_S = 90_000
MIN_TICKS = 90
"""Fewest ticks between two frames: containers round to milliseconds, and some accept no timestamp twice."""


def open_recording(av: ModuleType, source: str | Path, *, video: bool) -> tuple[Any, Any]:
    """Open a recording and return its container and its stream of pictures or sound.

    Raises:
        OSError: the recording cannot be opened.
        ValueError: FFmpeg finds invalid data, or no such stream.
    """
    check_instance("source", source, str | Path, "the path of a recording, or its URL")
    container = av.open(str(source))
    streams = container.streams.video if video else container.streams.audio
    if not streams:
        container.close()
        raise ValueError(f"source: expected a recording with {'pictures' if video else 'sound'}, got {str(source)!r}")
    return container, streams[0]


def render(
    source: str | Path, device: str | Path | DeviceProfile, *, seed: int = 0, seconds: float | None = None
) -> Iterator[Any]:
    """Yield the frames that a device captures of a scene, before they are encoded.

    Args:
        source: a good recording of the scene.
        device: profile of the device, or its name.
        seed: seed of the noise.
        seconds: seconds of the recording to use; ``None``: all.

    Yields:
        PyAV frames in order, without jitter or loss.

    Raises:
        MissingExtra: PyAV is not installed.
        OSError: the recording cannot be opened or read.
        ValueError: FFmpeg finds invalid data, or no pictures for a camera or no sound for a microphone.
    """
    av = require("av", extra="media", purpose="a device profile")
    profile = device_profile(device)
    seed = check_count("seed", seed, at_least=0, at_most=2**31 - 1)
    count = None
    if seconds is not None:
        count = max(1, round(check_duration_ns("seconds", seconds, positive=True) / 1e9 / profile.period_s))
    with ffmpeg_errors(av):
        container, stream = open_recording(av, source, video=isinstance(profile, CameraProfile))
        with container:
            frames = filter_frames(av, compile_filters(profile, seed=seed), container.decode(stream))
            yield from itertools.islice(frames, count)


def record(
    source: str | Path,
    device: str | Path | DeviceProfile,
    target: str | Path,
    *,
    seed: int = 0,
    seconds: float | None = None,
) -> None:
    """Write a scene as a receiver would record it from a device: encoded, with the arrival times of the frames.

    Args:
        source: a good recording of the scene.
        device: profile of the device, or its name.
        target: file to write; Matroska (``.mkv``) and NUT hold every codec with any timing.
        seed: seed of noise, jitter and loss.
        seconds: seconds of the recording to use; ``None``: all.

    Raises:
        MissingExtra: PyAV is not installed.
        OSError: the recording cannot be read, or the file cannot be written.
        ValueError: FFmpeg finds invalid data in the recording, or no pictures for a camera or no sound for a
            microphone.
        InvalidInput: the device loses every frame; nothing is written.
    """
    av = require("av", extra="media", purpose="record")
    profile = device_profile(device)
    frames = render(source, profile, seed=seed, seconds=seconds)
    timing = captures(profile.delivery, profile.period_s, seed)
    with av.open(str(target), "w") as container:
        rate = {"rate": Fraction(profile.rate).limit_denominator(1_001)} if isinstance(profile, CameraProfile) else {}
        stream = container.add_stream(CODECS[profile.codec].encoder, **rate)
        set_up_encoder(stream.codec_context, profile)
        encoder = stream.codec_context
        last_tick = -MIN_TICKS
        due: list[int] = []
        for frame, capture in itertools.zip_longest(frames, timing):
            if frame is not None:
                if capture.delivered_ns is None:
                    continue
                due.append(round(capture.delivered_ns * TICKS_PER_S / 1e9))
                frame.time_base = encoder.time_base
                frame.pts = capture.number * (1 if isinstance(profile, CameraProfile) else profile.frame_samples)
                if isinstance(profile, CameraProfile):
                    frame.pict_type = 0  # let the encoder choose: the frame has the type from the recording
            for packet in encoder.encode(frame):
                last_tick = max(last_tick + MIN_TICKS, due.pop(0) if due else 0)
                packet.pts = packet.dts = last_tick
                packet.time_base = Fraction(1, TICKS_PER_S)
                packet.stream = stream
                container.mux(packet)
            if frame is None:
                break
        if last_tick < 0:  # no packet, so no file was written
            raise InvalidInput(
                f"source: expected a recording of which device {profile.name!r} loses not all, got {source}"
            )
