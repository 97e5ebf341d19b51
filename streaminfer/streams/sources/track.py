"""`from_track`: frames of a WebRTC track, through aiortc."""

import time
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_clock, expected
from streaminfer.streams.sources.conversion import PictureConverter
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.loss_recovery import recover_losses
from streaminfer.streams.sources.source import Clock, Counters, Source
from streaminfer.streams.sources.task_feeder import Received, live_source

__all__ = ["Track", "from_track"]


class Track(Protocol):
    """An aiortc ``MediaStreamTrack``."""

    kind: str

    async def recv(self) -> Any:
        """Return the next decoded frame."""

    def stop(self) -> None:
        """End it."""


def from_track(track: Track, *, connection: Any = None, clock: Clock | None = None, **wanted: Any) -> Source:
    """Return the source of a WebRTC track, with sound or pictures.

    The source takes every frame from the track at once, keeps the newest picture or the last 0.25 s of sound for a slow
    reader, and ends with the track. Closing the source stops the track, but aiortc continues to decode until the
    connection, or the transceiver of the track, is closed. To share a track, use aiortc's ``MediaRelay``.

    Args:
        track: any aiortc ``MediaStreamTrack`` that returns decoded frames.
        connection: the ``RTCPeerConnection`` of the track. With it, the receiver recovers from lost packets in time;
            with aiortc alone, each loss delays everything after it. ``None``: aiortc alone.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.
        wanted: ``rate``, ``size`` and ``pixel_format`` as for `VideoSource`, or ``sample_rate``, ``chunk``, ``hop``,
            ``channels`` and ``dtype`` as for `AudioSource`.

    Raises:
        MissingExtra: aiortc is not installed.
        TypeError, ValueError: an argument of the wrong type or out of range, or a track of another connection.
    """
    read_clock = check_clock("clock", clock) or time.monotonic_ns
    ended = require("aiortc.mediastreams", extra="webrtc", purpose="from_track").MediaStreamError
    av = require("av", extra="webrtc", purpose="from_track")
    kinds = {"video": VideoFormat, "audio": AudioFormat}
    try:
        kind = track.kind
    except AttributeError:
        raise TypeError(expected("track", "a track of aiortc", track)) from None
    if kind not in kinds:
        raise ValueError(expected("track", "a track of kind 'video' or 'audio'", kind))
    target = kinds[kind](**wanted)
    if connection is not None:
        recover_losses(connection, track, read_clock)
    convert = PictureConverter(av, target) if isinstance(target, VideoFormat) else None

    async def receive() -> AsyncGenerator[Received]:
        try:
            while True:
                frame = await track.recv()
                yield Received(frame, frame.pts, frame.time_base)
        except ended:
            return  # the other side, or the connection, has ended

    return live_source(av, receive(), target, Counters(), read_clock, convert=convert, end=track.stop)
