"""Live audio streams in real time: the number that a speech detector serves with results that are young enough.

*Design.* A stream has a chunk of 32 ms every 32 ms, whether or not the last one has its result (an open loop), and
starts at a random phase. One timer serves all streams, 64 times per chunk, because a timer per stream would take a good
part of the measured time. Age runs from the instant at which a chunk was complete. A chunk counts as late if its result
is older than 64 ms or has not come 64 ms after the end of the window.

This module needs NumPy and the standard library only: it runs in the environments of the voice frameworks, too.
"""

import asyncio
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_S", "Load", "Play", "find_capacity", "load_pcm", "serve_streams"]

RECORDING = Path(__file__).resolve().parents[2] / "examples" / "assets" / "librivox_0870.wav"
CHUNK = 512
RATE = 16_000
CHUNK_S = CHUNK / RATE
CHUNK_NS = CHUNK * 1_000_000_000 // RATE
AGE_NS = 64_000_000
ENOUGH = 0.999
PHASES = 64
SETTLE_S = 0.5
SEED = 16


class Load(NamedTuple):
    """Measurements of streams that were served for a while.

    Attributes:
        streams: number of streams.
        share: share of the chunks whose results were young enough.
        cpu_s: processor time per chunk of the whole process, the driver included.
        p999_s: 99.9th percentile of the ages of results.
    """

    streams: int
    share: float
    cpu_s: float
    p999_s: float


Source = AsyncIterator[tuple[int, NDArray[np.int16]]]
Play = Callable[[Source, Callable[[int], None]], Awaitable[Any]]
"""Plays chunks with their capture instants, and calls back with the capture instant of each chunk that has a result."""


def load_pcm() -> list[NDArray[np.int16]]:
    """Return the recording in chunks."""
    with wave.open(str(RECORDING)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return list(samples[: len(samples) // CHUNK * CHUNK].reshape(-1, CHUNK))


class _Pace:
    """Timer that wakes each of 64 phases once per chunk.

    Chunks begin when all streams are open, because opening one can take a while.
    """

    def __init__(self, streams: int) -> None:
        self._opening = streams
        self.ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._beats = [self._loop.create_future() for _ in range(PHASES)]
        self._began_ns = time.monotonic_ns()
        self._count = 0
        self._timer = self._loop.call_soon(self._beat)

    async def chunks(self, phase: int, pcm: list[NDArray[np.int16]]) -> Source:
        """Yield the chunks of the recording in an endless loop, each when it is complete, and overdue ones at once."""
        self._opening -= 1
        if not self._opening:
            self.ready.set()
        await self.ready.wait()
        await self._beats[phase]
        due_ns = self.due_ns(phase)
        while True:
            for chunk in pcm:
                while time.monotonic_ns() < due_ns:
                    await self._beats[phase]
                yield due_ns, chunk
                due_ns += CHUNK_NS

    def due_ns(self, phase: int) -> int:
        """Return the last instant at which a phase was due."""
        rounds = (self._count - 1 - phase) // PHASES
        return self._began_ns + (rounds * PHASES + phase) * CHUNK_NS // PHASES

    def stop(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _beat(self) -> None:
        now_ns = time.monotonic_ns()
        while (due_ns := self._began_ns + self._count * CHUNK_NS // PHASES) <= now_ns:
            phase = self._count % PHASES
            self._count += 1
            beat, self._beats[phase] = self._beats[phase], self._loop.create_future()
            beat.set_result(None)
        self._timer = self._loop.call_at(self._loop.time() + (due_ns - now_ns) / 1e9, self._beat)


async def serve_streams(play: Play, streams: int, seconds: float) -> Load:
    """Serve live streams for a while and return the measurements.

    Args:
        play: plays one stream, until it is cancelled.
        streams: number of streams.
        seconds: length of the measured window, which opens after the streams have settled.
    """
    pcm = load_pcm()
    pace = _Pace(streams)
    phases = np.random.default_rng(SEED).integers(PHASES, size=streams).tolist()
    window = [0, 0]  # no result counts before the window opens
    ages: list[int] = []

    def answered(captured_ns: int) -> None:
        if window[0] <= captured_ns < window[1]:
            ages.append(time.monotonic_ns() - captured_ns)

    tasks = [asyncio.ensure_future(play(pace.chunks(phase, pcm), answered)) for phase in phases]
    try:
        await pace.ready.wait()
        await asyncio.sleep(SETTLE_S)
        opens_ns = pace.due_ns(0) + CHUNK_NS
        window[:] = opens_ns, opens_ns + round(seconds / CHUNK_S) * CHUNK_NS
        cpu_s = time.process_time()
        await asyncio.sleep((window[1] - time.monotonic_ns()) / 1e9)
        cpu_s = time.process_time() - cpu_s
        done = len(ages)
        await asyncio.sleep(AGE_NS / 1e9)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        pace.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    due = streams * (window[1] - window[0]) // CHUNK_NS
    share = sum(age <= AGE_NS for age in ages) / due
    return Load(streams, share, cpu_s / max(done, 1), float(np.quantile(ages, 0.999)) / 1e9 if ages else np.inf)


async def find_capacity(play: Play, seconds: float, first: int = 16) -> tuple[int, Load]:
    """Return the most streams with 99.9 % of results young enough, to within 6 %, and the measurements at that number.

    Args:
        play: plays one stream.
        seconds: seconds for which each number of streams is served.
        first: streams of the first load. The number grows by a factor of 1.6 until it is too high, because CPU per
            chunk falls with larger batches.
    """
    held, count, high = Load(0, 0.0, np.inf, np.inf), first, 0
    while not high or high > 1.06 * held.streams + 1:
        load = await serve_streams(play, count, seconds)
        if load.share >= ENOUGH:
            held = load
        else:
            high = count
        count = (held.streams + high) // 2 if high else round(1.6 * count)
    return held.streams, held
