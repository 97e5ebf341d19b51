"""Live streams, and the outcomes of the frames that are captured in a window of time."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable
from typing import Any

from demo.meter import Meter
from streaminfer.protocols import Clock
from streaminfer.streams import Frame, StreamResult, StreamSession

__all__ = ["DirectStreams", "LiveStreams", "SessionStreams"]


class LiveStreams:
    """Live streams of one kind.

    Args:
        slo_ns: a result of at most this age is on time; no result is much older.
        clock: clock of the event loop.
    """

    def __init__(self, slo_ns: int, clock: Clock) -> None:
        self._slo_ns = slo_ns
        self._clock = clock
        self._meter = Meter(slo_ns)
        self._opens_ns = self._closes_ns = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, source: AsyncIterable[Frame], stream_id: Hashable) -> None:
        """Let a stream join."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End every stream, at once or when its source has ended."""
        await asyncio.gather(*self._tasks)

    async def measure(self, seconds: float) -> Meter:
        """Count the frames that are captured in the next seconds, and return once each has ended."""
        meter = self._meter = Meter(self._slo_ns)
        self._opens_ns = self._clock()
        self._closes_ns = self._opens_ns + round(seconds * 1e9)
        await self.wait_until(self._closes_ns + 2 * self._slo_ns)
        if dropped := meter.sent - meter.ended:
            meter.lost["dropped"] = dropped
        return meter

    async def wait_until(self, instant_ns: int) -> None:
        """Wait until an instant; raise the error of a stream that fails in the meantime."""
        left_s = max(0.0, (instant_ns - self._clock()) / 1e9)
        if not self._tasks:
            await asyncio.sleep(left_s)
            return
        ended, _ = await asyncio.wait(self._tasks, timeout=left_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()

    def _is_measured(self, captured_ns: int) -> bool:
        return self._opens_ns <= captured_ns < self._closes_ns

    async def _count(self, source: AsyncIterable[Frame]) -> AsyncIterable[Frame]:
        async for frame in source:
            if self._is_measured(frame.captured_ns):
                self._meter.sent += 1
            yield frame


class SessionStreams(LiveStreams):
    """Streams that a `StreamSession` reads.

    Args:
        session: session that reads the streams; its results are rarely or never older than ``slo_ns``.
        slo_ns: a result of at most this age is on time.
        clock: clock of the session.
        take: gets each result with outputs.
    """

    def __init__(self, session: StreamSession, slo_ns: int, clock: Clock, take: Callable[[StreamResult], None]) -> None:
        super().__init__(slo_ns, clock)
        self.session = session
        self._take = take

    def add(self, source: AsyncIterable[Frame], stream_id: Hashable) -> None:
        """Let a stream join."""
        self.session.add(self._count(source), stream_id=stream_id)
        if not self._tasks:
            self._tasks.add(asyncio.create_task(self._consume()))

    async def stop(self) -> None:
        """End every stream at once."""
        await self.session.aclose()
        await super().stop()

    async def _consume(self) -> None:
        async for result in self.session:
            measured = self._is_measured(result.captured_ns)
            if result.error is None:
                self._take(result)
                if measured:
                    self._meter.answered(result.delivered_ns - result.captured_ns)
            elif result.source_failed:
                raise result.error
            elif measured:
                self._meter.failed(result.error)


class DirectStreams(LiveStreams):
    """Streams with a task each, which awaits one response after the other.

    Args:
        respond: returns the response to a frame of a stream, or ``None`` if it was skipped.
        slo_ns: a response of at most this age is on time.
        clock: clock of the event loop.
        take: gets the stream, the number of the frame in it and the response.
    """

    def __init__(
        self,
        respond: Callable[[Hashable, Frame], Awaitable[Any]],
        slo_ns: int,
        clock: Clock,
        take: Callable[[Hashable, int, Any], None],
    ) -> None:
        super().__init__(slo_ns, clock)
        self._respond = respond
        self._take = take

    def add(self, source: AsyncIterable[Frame], stream_id: Hashable) -> None:
        """Let a stream join."""
        self._tasks.add(asyncio.create_task(self._serve(source, stream_id)))

    async def _serve(self, source: AsyncIterable[Frame], stream_id: Hashable) -> None:
        number = 0
        async for frame in self._count(source):
            response = await self._respond(stream_id, frame)
            if response is not None:
                self._take(stream_id, number, response)
                if self._is_measured(frame.captured_ns):
                    self._meter.answered(self._clock() - frame.captured_ns)
            number += 1
