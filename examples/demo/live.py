"""Live streams through one session, and what becomes of the frames that are captured in a window of time."""

import asyncio
from collections.abc import AsyncIterable, Callable, Hashable

from demo.meter import Meter
from streaminfer.protocols import Clock
from streaminfer.streams import Frame, StreamResult, StreamSession

__all__ = ["LiveStreams"]


class LiveStreams:
    """Live streams of one kind.

    Args:
        session: reads them; its results are older than ``slo_ns`` rarely or never.
        slo_ns: a result of at most this age is on time.
        clock: of the session.
        take: gets each result with outputs.
    """

    def __init__(self, session: StreamSession, slo_ns: int, clock: Clock, take: Callable[[StreamResult], None]) -> None:
        self.session = session
        self._slo_ns = slo_ns
        self._clock = clock
        self._take = take
        self._meter = Meter(slo_ns)
        self._opens_ns = self._closes_ns = 0
        self._consuming: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.session.streams)

    def add(self, source: AsyncIterable[Frame], stream_id: Hashable) -> None:
        """Let a stream join."""
        self.session.add(self._count(source), stream_id=stream_id)
        if self._consuming is None:
            self._consuming = asyncio.create_task(self._consume())

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
        """Wait, and raise what ends the consumer meanwhile."""
        left_s = max(0.0, (instant_ns - self._clock()) / 1e9)
        if self._consuming is None:
            await asyncio.sleep(left_s)
        elif (await asyncio.wait({self._consuming}, timeout=left_s))[0]:
            self._consuming.result()

    async def stop(self) -> None:
        """End every stream."""
        await self.session.aclose()
        if self._consuming is not None:
            await self._consuming

    async def _count(self, source: AsyncIterable[Frame]) -> AsyncIterable[Frame]:
        async for frame in source:
            if self._opens_ns <= frame.captured_ns < self._closes_ns:
                self._meter.sent += 1
            yield frame

    async def _consume(self) -> None:
        async for result in self.session:
            measured = self._opens_ns <= result.captured_ns < self._closes_ns
            if result.error is None:
                self._take(result)
                if measured:
                    self._meter.answered(result.delivered_ns - result.captured_ns)
            elif result.source_failed:
                raise result.error
            elif measured:
                self._meter.failed(result.error)
