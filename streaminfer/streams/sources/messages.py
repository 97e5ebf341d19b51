"""`audio_from_messages` and `video_from_messages`: sources of what a browser sends over a WebSocket."""

import time
from collections.abc import AsyncGenerator, AsyncIterable
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_choice, check_count, check_instance
from streaminfer.streams.sources.conversion import PictureConverter
from streaminfer.streams.sources.formats import AudioFormat, Dtype, VideoFormat
from streaminfer.streams.sources.source import Clock, Counters, Source
from streaminfer.streams.sources.task_feeder import Received, live_source

__all__ = ["PauseDetector", "audio_from_messages", "video_from_messages"]

PAUSE_NS = 1_000_000_000  # a sender that is silent for longer is muted, not slow: TCP delivers late data at once
SHORT_PAUSE_NS = 100_000_000  # shortest silence of a muted sender: less is jitter
CATCH_UP_NS = 250_000_000  # time in which a network delivers more than half of what it held up
MAX_PIXELS = 50_000_000  # limit for a picture, because the sender is not trusted
Pause = Literal["long", "short"]
CODECS = {b"\xff\xd8": "mjpeg", b"\x89P": "png", b"RI": "webp"}
"""Codec by the first bytes of a picture."""


class PauseDetector:
    """Distinguishes a sender that paused from a network that stalled, for messages without timestamps.

    After a stall, the network delivers everything that it held up at once, so the delay is soon made up for. After a
    pause, sound arrives only at the speed of speech, and would count as old as long as the smallest delay is
    remembered.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._since_ns: int | None = None  # arrival of the message that was late
        self._late_ns = 0
        self._received_ns = 0  # duration of the sound that has arrived after it

    def arrived(self, now_ns: int, length_ns: int) -> Pause | None:
        """Return the pause that a message of sound ends: ``"long"``, or ``"short"``, which is known a little later."""
        late_ns = 0 if self._last_ns is None else now_ns - self._last_ns - length_ns
        self._last_ns = now_ns
        if late_ns > PAUSE_NS:
            self._since_ns = None
            return "long"
        if self._since_ns is None:
            if late_ns > SHORT_PAUSE_NS:
                self._since_ns, self._late_ns, self._received_ns = now_ns, late_ns, 0
            return None
        self._received_ns += length_ns
        caught_up_ns = self._received_ns - (now_ns - self._since_ns)
        has_caught_up = 2 * caught_up_ns > self._late_ns
        if not has_caught_up and now_ns - self._since_ns < CATCH_UP_NS:
            return None
        self._since_ns = None
        return None if has_caught_up else "short"


def audio_from_messages(
    messages: AsyncIterable[Any],
    *,
    sent_rate: int,
    sent_channels: int = 1,
    sent_dtype: Dtype = "int16",
    clock: Clock | None = None,
    **wanted: Any,
) -> Source:
    """Return the source of sound that arrives as messages of raw samples, as over a WebSocket.

    The source ends with the messages. It counts messages that are not whole samples as corrupt.

    Args:
        messages: iterates over bytes: samples in little-endian order, those of the channels interleaved.
        sent_rate: samples per second of the messages.
        sent_channels: 1 or 2.
        sent_dtype: type of the samples: ``"int16"`` or ``"float32"``.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.
        wanted: ``sample_rate``, ``chunk``, ``hop``, ``channels``, ``dtype`` as for `AudioSource`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        MissingExtra: PyAV is not installed.
    """
    av = require("av", extra="media", purpose="audio_from_messages")
    _check_messages(messages)
    check_count("sent_rate", sent_rate, at_most=768_000)
    check_count("sent_channels", sent_channels, at_most=2)
    dtype = np.dtype(check_choice("sent_dtype", sent_dtype, ("int16", "float32"))).newbyteorder("<")
    sample_format = "s16" if sent_dtype == "int16" else "flt"
    target = AudioFormat(**wanted)
    counters, time_base = Counters(), Fraction(1, sent_rate)
    read_clock = clock or time.monotonic_ns

    async def receive() -> AsyncGenerator[Received]:
        position, pauses = 0, PauseDetector()
        async for message in messages:
            content = _bytes_of(message)
            if not content or len(content) % (dtype.itemsize * sent_channels):
                counters.corrupt += 1
                continue
            samples = np.frombuffer(content, dtype).astype(sent_dtype, copy=False)
            frame = av.AudioFrame.from_ndarray(
                samples[np.newaxis], sample_format, "mono" if sent_channels == 1 else "stereo"
            )
            frame.sample_rate = sent_rate
            pause = pauses.arrived(read_clock(), frame.samples * 1_000_000_000 // sent_rate)
            yield Received(frame, position, time_base, continues=pause != "long", forgets_delays=pause == "short")
            position += frame.samples

    return live_source(av, receive(), target, counters, read_clock, convert=None)


def video_from_messages(messages: AsyncIterable[Any], *, clock: Clock | None = None, **wanted: Any) -> Source:
    """Return the source of pictures that arrive as messages of one JPEG, PNG or WebP each, as over a WebSocket.

    Only the newest picture waits for a slow reader. The source decodes only the pictures that the reader takes, off the
    event loop. It ends with the messages, and counts messages that it cannot decode as corrupt.

    Args:
        messages: iterates over bytes.
        clock: returns monotonic nanoseconds; ``None``: ``time.monotonic_ns``.
        wanted: ``rate``, ``size``, ``pixel_format`` as for `VideoSource`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        MissingExtra: PyAV is not installed.
    """
    av = require("av", extra="media", purpose="video_from_messages")
    _check_messages(messages)
    target = VideoFormat(**wanted)
    counters = Counters()
    convert = PictureConverter(av, target)

    def decode(message: bytes) -> np.ndarray[Any, Any]:
        codec = av.CodecContext.create(CODECS[message[:2]], "r")
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        try:
            return convert(next(iter(codec.decode(av.Packet(message)) + codec.decode(None))))
        except (av.FFmpegError, StopIteration) as error:
            raise ValueError("no picture in the message") from error

    async def receive() -> AsyncGenerator[Received]:
        async for message in messages:
            picture = _bytes_of(message)  # a copy: the sender may reuse its memory before this is decoded
            if picture[:2] in CODECS:
                yield Received(picture)
            else:
                counters.corrupt += 1

    return live_source(av, receive(), target, counters, clock or time.monotonic_ns, convert=decode)


def _check_messages(messages: object) -> None:
    expectation = "an asynchronous iterable of bytes"
    check_instance("messages", messages, AsyncIterable, expectation)


def _bytes_of(message: object) -> bytes:
    """Return the content of a binary message, copied unless it is immutable; empty for other messages."""
    return bytes(message) if isinstance(message, bytes | bytearray | memoryview) else b""
