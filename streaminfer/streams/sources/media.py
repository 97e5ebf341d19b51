"""`VideoSource` and `AudioSource`: devices, files and URLs, through PyAV."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_clock, check_duration, check_instance, expected
from streaminfer.streams.sources.formats import AudioFormat, Dtype, PixelFormat, VideoFormat
from streaminfer.streams.sources.location import locate
from streaminfer.streams.sources.media_thread import MediaThread
from streaminfer.streams.sources.reconnect import Reconnect
from streaminfer.streams.sources.source import Clock, Source
from streaminfer.streams.sources.task_feeder import make_handoff

__all__ = ["AudioSource", "VideoSource", "WhenSlow"]

WhenSlow = Literal["drop", "wait"]


class _MediaSource(Source):
    """Common base of both sources: the origin of the frames, and the handling of a slow reader."""

    def __init__(
        self,
        url: str | Path | int,
        target: VideoFormat | AudioFormat,
        live: bool | None,
        realtime: bool,
        when_slow: WhenSlow | None,
        reconnect: Reconnect | None,
        timeout_s: float,
        format: str | None,  # noqa: A002 the word of FFmpeg
        options: Mapping[str, str] | None,
        clock: Clock | None,
    ) -> None:
        check_instance("reconnect", reconnect, Reconnect | None, "a Reconnect or None")
        timeout_s = check_duration("timeout_s", timeout_s, positive=True)
        check_instance("live", live, bool | None, "True, False or None")
        check_instance("realtime", realtime, bool, "True or False")
        check_instance("format", format, str | None, "a name of FFmpeg, or None")
        check_instance("options", options, _are_options, "a mapping of text to text, as {'framerate': '30'}, or None")
        clock = check_clock("clock", clock)
        av = require("av", extra="media", purpose=type(self).__name__)
        location = locate(url, format=format, live=live, options=dict(options or {}))
        if location.format is not None:
            _check_format(av, location.format)
        if when_slow is None:
            when_slow = "drop" if location.live else "wait"
        drops = check_choice("when_slow", when_slow, ("drop", "wait")) == "drop"
        paced, clock = realtime and (location.local or not location.live), clock or time.monotonic_ns
        feeder = MediaThread(
            av, location, target, realtime=paced, reconnect=reconnect, timeout_s=timeout_s, clock=clock
        )
        super().__init__(feeder, make_handoff(target, drops=drops))


def _are_options(options: object) -> bool:
    if not isinstance(options, Mapping):
        return options is None
    return all(isinstance(it, str) for pair in options.items() for it in pair)


def _check_format(av: Any, name: str) -> None:
    try:
        av.format.ContainerFormat(name, "r")
    except ValueError as error:
        expectation = "a device or container that this build of FFmpeg reads"
        raise ValueError(expected("format", expectation, name)) from error


class VideoSource(_MediaSource):
    """Pictures of a camera, a file or a URL.

    A live source keeps only the newest picture for a slow reader, and reconnects after an error. A file waits for its
    reader, ends, and raises its errors. Each source decodes in its own thread.

    Args:
        url: a URL that FFmpeg opens (RTSP, HTTP, SRT, …), the path of a file, or the number of a camera.
        rate: maximum number of pictures per second; ``None``: all.
        size: width and height; ``None``: the size of each picture, which may change.
        pixel_format: format of the arrays: ``"rgb24"``, ``"bgr24"``, ``"rgba"``, ``"bgra"``, ``"gray"`` or
            ``"yuv420p"``, which rounds odd picture sizes up and accepts no odd ``size``.
        live: whether the source is live; ``None``: devices and URLs are, files are not. Use ``False`` for a recording
            at a URL.
        realtime: play a file, or with ``live=False`` a recording at a URL, at the speed of its timestamps. With
            ``live=True`` a file is played like a camera: again and again, and a slow reader loses pictures.
        when_slow: for a slow reader, ``"drop"`` all but the newest picture, or ``"wait"``; ``None``: drop if live.
        reconnect: how a live source connects again; ``None``: it raises instead.
        timeout_s: seconds without a connection, or without a packet, after which a connection counts as broken; also
            the most that each step of `aclose` waits for FFmpeg.
        format: FFmpeg's name of a device or container; ``None``: FFmpeg detects it.
        options: for FFmpeg, as ``{"rtsp_transport": "udp"}``.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        MissingExtra: PyAV is not installed.
    """

    def __init__(
        self,
        url: str | Path | int,
        *,
        rate: float | None = None,
        size: tuple[int, int] | None = None,
        pixel_format: PixelFormat = "rgb24",
        live: bool | None = None,
        realtime: bool = False,
        when_slow: WhenSlow | None = None,
        reconnect: Reconnect | None = Reconnect(),  # noqa: B008 immutable
        timeout_s: float = 5.0,
        format: str | None = None,  # noqa: A002 the word of FFmpeg
        options: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        target = VideoFormat(rate=rate, size=size, pixel_format=pixel_format)
        super().__init__(url, target, live, realtime, when_slow, reconnect, timeout_s, format, options, clock)


class AudioSource(_MediaSource):
    """Chunks of sound of a microphone, a file or a URL.

    A chunk's ``captured_ns`` is the instant of its last sample. Chunks are contiguous, except at a discontinuity:
    after a reconnect, a gap of more than 0.5 s, or chunks that a slow reader lost. A shorter gap is filled with
    silence. The last chunk before an end is padded with zeros. A live source keeps 0.25 s for a slow reader; otherwise
    it behaves like `VideoSource`.

    Args:
        url: a URL that FFmpeg opens, the path of a file, or the name of a device of ``format``.
        sample_rate: samples per second.
        chunk: samples per chunk.
        hop: samples from the start of a chunk to the start of the next one, at most ``chunk``; with fewer, chunks
            overlap. ``None``: ``chunk``.
        channels: 1 gives arrays of shape ``(chunk,)``, 2 of shape ``(2, chunk)``.
        dtype: ``"float32"`` from -1 to 1, or ``"int16"``.
        live: as for `VideoSource`.
        realtime: as for `VideoSource`.
        when_slow: as for `VideoSource`.
        reconnect: as for `VideoSource`.
        timeout_s: as for `VideoSource`.
        format: as for `VideoSource`; ``"alsa"``, ``"pulse"``, ``"avfoundation"`` and ``"dshow"`` are microphones.
        options: as for `VideoSource`.
        clock: as for `VideoSource`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        MissingExtra: PyAV is not installed.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        sample_rate: int = 16_000,
        chunk: int = 512,
        hop: int | None = None,
        channels: int = 1,
        dtype: Dtype = "float32",
        live: bool | None = None,
        realtime: bool = False,
        when_slow: WhenSlow | None = None,
        reconnect: Reconnect | None = Reconnect(),  # noqa: B008 immutable
        timeout_s: float = 5.0,
        format: str | None = None,  # noqa: A002 the word of FFmpeg
        options: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        target = AudioFormat(sample_rate=sample_rate, chunk=chunk, hop=hop, channels=channels, dtype=dtype)
        super().__init__(url, target, live, realtime, when_slow, reconnect, timeout_s, format, options, clock)
