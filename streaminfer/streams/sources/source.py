"""`Source`: an asynchronous iterator of frames of any origin."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._runtime.closing import AsyncClosing
from streaminfer.protocols import Clock
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.handoff import HAS_READER, Handoff

__all__ = ["Clock", "Counters", "Feeder", "Source", "SourceStatistics"]


@attrs.define(slots=True)
class Counters:
    """Counters of a feeder; only the feeder writes them."""

    skipped: int = 0
    corrupt: int = 0
    reconnects: int = 0
    silence_s: float = 0.0
    connected: bool = False
    last_error: str | None = None


@attrs.frozen
class SourceStatistics(Snapshot):
    """Counts of one source, since its start.

    Each decoded picture, and each chunk of sound, counts as delivered, dropped, skipped or waiting.

    Attributes:
        delivered: frames that the reader got.
        dropped: frames that waited when newer ones replaced them, or when the source was closed.
        waiting: frames in the buffer, or in conversion.
        skipped: pictures beyond ``rate``.
        corrupt: packets, pictures or messages that could not be decoded.
        reconnects: connections after the first.
        silence_s: seconds of silence in place of lost packets.
        connected: whether there is a connection, or an open file.
        last_error: error of the last connection that failed; ``None``: none has failed.
    """

    delivered: int
    dropped: int
    waiting: int
    skipped: int
    corrupt: int
    reconnects: int
    silence_s: float
    connected: bool
    last_error: str | None


class Feeder(Protocol):
    """Producer of a source's frames."""

    counters: Counters

    def start(self, handoff: Handoff) -> None:
        """Begin, on the running loop."""

    async def stop(self) -> None:
        """Return when nothing runs any more; also works if nothing was started."""


class Source(AsyncClosing, AsyncIterator[Frame]):
    """Frames of one live source, or of a file.

    Iteration starts the source. `aclose` ends it in any state, as does the end of ``async with``. Only one task may
    iterate.

    Args:
        feeder: produces the frames.
        handoff: the buffer between feeder and reader.
        convert: converts the inputs of a frame that the reader takes, in the executor of the loop.
    """

    def __init__(self, feeder: Feeder, handoff: Handoff, convert: Callable[[Any], Any] | None = None) -> None:
        self._feeder = feeder
        self._handoff = handoff
        self._convert = convert
        self._loop: asyncio.AbstractEventLoop | None = None  # on which it runs; None: it was not started
        self._delivered = 0
        self._converting: tuple[Frame, asyncio.Future[Any]] | None = None  # stays if the reader is cancelled
        self._discontinuity = False  # of a frame that could not be converted
        self._is_read = False  # a task waits for a frame to be converted
        weakref.finalize(self, handoff.close)  # a source without references lets its decoder end

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        """Return the next frame.

        Raises:
            StopAsyncIteration: the source has ended, or was closed.
            OSError: FFmpeg cannot open the source, or cannot read it any further.
            ValueError: FFmpeg finds invalid data, or the source has no pictures or no sound.
            RuntimeError: another task waits already.
        """
        if self._loop is None and not self._handoff.closed.is_set():
            self._feeder.start(self._handoff)
            self._loop = asyncio.get_running_loop()
        frame = await (self._handoff.get() if self._convert is None else self._get_converted(self._convert))
        self._delivered += 1
        return frame

    async def _get_converted(self, convert: Callable[[Any], Any]) -> Frame:
        if self._is_read:
            raise RuntimeError(HAS_READER)  # else both would get the frame that is converted
        self._is_read = True
        try:
            while True:
                if self._converting is None:
                    frame = await self._handoff.get()
                    self._discontinuity |= frame.discontinuity
                    loop = asyncio.get_running_loop()
                    self._converting = frame, loop.run_in_executor(None, convert, frame.inputs)
                frame, converted = self._converting
                await asyncio.wait([converted])
                if self._handoff.closed.is_set():
                    raise StopAsyncIteration
                self._converting = None
                try:
                    inputs = converted.result()
                except ValueError:  # invalid data
                    self._feeder.counters.corrupt += 1
                    continue
                frame = attrs.evolve(frame, inputs=inputs, discontinuity=self._discontinuity)
                self._discontinuity = False
                return frame
        finally:
            self._is_read = False

    async def aclose(self) -> None:
        """End the source and return when its thread or task has ended; may be called twice."""
        self._handoff.close()
        if self._loop is not None and self._loop.is_closed():
            return  # its task has ended with the loop, and its thread ends now
        await self._feeder.stop()
        if self._converting is not None:
            await asyncio.gather(self._converting[1], return_exceptions=True)

    def statistics(self) -> SourceStatistics:
        """Return the counts so far."""
        unread, closed = int(self._converting is not None), self._handoff.closed.is_set()
        return SourceStatistics(
            delivered=self._delivered,
            dropped=self._handoff.dropped + (unread if closed else 0),
            waiting=len(self._handoff) + (0 if closed else unread),
            **attrs.asdict(self._feeder.counters),
        )
