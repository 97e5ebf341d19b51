"""Feeder for items that arrive in the event loop: tracks and messages."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from fractions import Fraction
from typing import Any

import attrs

from streaminfer._internal.validation import check_clock
from streaminfer.streams.sources.conversion import FrameMaker
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.handoff import Handoff
from streaminfer.streams.sources.source import Clock, Counters, Source

__all__ = ["Received", "TaskFeeder", "live_source", "make_handoff"]

FILE_BUFFER = 4
"""Frames of a file that are decoded ahead of the reader."""
SOUND_BUFFER_S = 0.25
"""How much sound waits for the reader of a live stream, so that a reader that is busy for a moment loses none."""


@attrs.frozen(slots=True)
class Received:
    """One item that arrived.

    Attributes:
        frame: decoded sound, or a picture, decoded or not.
        pts: timestamp in ticks; ``None``: no timestamp.
        time_base: seconds per tick.
        continues: ``False`` if the timestamps are unrelated to the earlier ones.
        forgets_delays: the network did not delay the item, although it comes later than its timestamp says.
    """

    frame: Any
    pts: int | None = None
    time_base: Fraction | None = None
    continues: bool = True
    forgets_delays: bool = False


@attrs.define(eq=False)
class TaskFeeder:
    """Feeder with a task that takes each item as it arrives, so that items do not pile up."""

    counters: Counters
    _items: AsyncGenerator[Received]
    _maker: FrameMaker
    _clock: Clock
    _end: Callable[[], None]
    _task: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    def start(self, handoff: Handoff) -> None:
        """Begin to receive."""
        self._task = asyncio.create_task(self._receive(handoff))

    async def stop(self) -> None:
        """Return when the task has ended."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            await self._items.aclose()  # a task that is cancelled before it begins has closed nothing
        finally:
            self._end()

    async def _receive(self, handoff: Handoff) -> None:
        error: Exception | None = None
        self.counters.connected = True
        try:
            error = await self._receive_items(handoff)
            for frame in self._maker.flush():  # the reader gets the frames before an error first
                handoff.put(frame)
        except Exception as raised:  # noqa: BLE001 the reader gets it
            error = error or raised
        finally:
            self.counters.connected = False
            handoff.finish(error)
            self._end()  # now, because the reader may never close the source

    async def _receive_items(self, handoff: Handoff) -> Exception | None:
        """Take items as they arrive; return the error that ended them, or ``None``."""
        try:
            async with aclosing(self._items) as items:
                async for item in items:
                    if not item.continues:
                        self._maker.repair.restart()
                    if item.forgets_delays:
                        self._maker.repair.forget_delays()
                    for frame in self._maker.make(item.frame, item.pts, item.time_base, self._clock()):
                        handoff.put(frame)
                    if handoff.closed.is_set():  # no reference to the source is left
                        break
        except Exception as raised:  # noqa: BLE001 the reader gets it
            return raised
        except asyncio.CancelledError as raised:
            if self._task is None or self._task.cancelling():
                raise
            return RuntimeError(f"the source: {raised!r}")  # the items were cancelled, not this task
        return None


def live_source(
    av: Any,
    items: AsyncGenerator[Received],
    target: VideoFormat | AudioFormat,
    counters: Counters,
    clock: Clock,
    *,
    convert: Callable[[Any], Any] | None,
    end: Callable[[], None] = lambda: None,
) -> Source:
    """Return the source of items that arrive in the event loop.

    Args:
        av: PyAV.
        items: the items as they arrive.
        target: what the model takes.
        counters: counters of the source.
        clock: returns monotonic nanoseconds.
        convert: makes an array of a picture that the reader takes.
        end: called once or twice, when the feeder takes no more items.
    """
    maker = FrameMaker(av, target, counters, live=True, converts=False)
    feeder = TaskFeeder(counters, items, maker, check_clock("clock", clock), end)
    return Source(feeder, make_handoff(target, drops=True), convert)


def make_handoff(target: VideoFormat | AudioFormat, *, drops: bool) -> Handoff:
    """Return a buffer for pictures or sound: frames decoded ahead, or what a live stream keeps for a slow reader."""
    is_sound = isinstance(target, AudioFormat)
    live_buffer = target.chunks_in(SOUND_BUFFER_S) if isinstance(target, AudioFormat) else 1
    return Handoff(live_buffer if drops else FILE_BUFFER, drops=drops, contiguous=is_sound)
