"""Settings in which live streams are measured: virtual time, real time with a model that sleeps, and with BlazeFace."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.testing import ScriptedBackend, run

__all__ = ["Timed", "World", "real", "sleeping", "virtual"]

BLAZE = Path(__file__).resolve().parents[2] / "examples" / "assets" / "blaze_full.onnx"
BATCH = 16


class Timed:
    """Backend that records the seconds and sizes of the batches of another."""

    def __init__(self, inner: Any, clock: Callable[[], int]) -> None:
        self.inner, self.clock = inner, clock
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.returns_new_arrays = True

    async def start(self) -> None:
        await adapt(self.inner).start()

    async def stop(self, *, drain: bool = True) -> None:
        await adapt(self.inner).stop(drain=drain)

    async def infer(self, batch: si.Batch) -> Any:
        begun_ns = self.clock()
        try:
            return await self.inner.infer(batch)
        finally:
            self.seconds.append((self.clock() - begun_ns) / 1e9)
            self.sizes.append(len(batch))


class World(NamedTuple):
    """Model with its clock and event loop.

    Attributes:
        name: name in the tables and in the cases of figures.
        frame: inputs of a request.
        batch: the most rows in a batch.
        batch_s: seconds of a full batch.
        make: makes the backend.
        runs: runs a coroutine function, which gets the clock, on a loop with that clock.
        seconds: duration of a scenario.
    """

    name: str
    frame: Any
    batch: int
    batch_s: float
    make: Callable[[], Any]
    runs: Callable[[Callable[[Callable[[], int]], Any]], Any]
    seconds: float

    @property
    def capacity(self) -> float:
        """Requests per second."""
        return self.batch / self.batch_s


def full_s(size: int) -> float:
    """Return the seconds of a batch: 20 ms for a full one, of which 16 ms do not depend on the size."""
    return 0.020 * (0.8 + 0.2 * size / BATCH)


def virtual(seconds: float, batch: int = BATCH) -> World:
    """Return a world of virtual time, with a scripted model."""
    return World(
        f"virtual time, {batch} rows per batch" if batch > 1 else "virtual time, one row per batch",
        1.0,
        batch,
        full_s(BATCH),
        lambda: ScriptedBackend(duration_s=lambda size: full_s(size * BATCH // batch)),
        lambda main: run(lambda loop: main(loop.clock)),
        seconds,
    )


def sleeping(seconds: float) -> World:
    """Return a world of real time, with a model that sleeps: the event loop sees a device or a server like that."""

    def answer(x: Any) -> Any:
        time.sleep(full_s(len(x)))
        return x

    return World(
        "a model that sleeps",
        1.0,
        BATCH,
        full_s(BATCH),
        lambda: si.CpuBackend(answer),
        lambda main: asyncio.run(main(time.monotonic_ns)),
        seconds,
    )


def real(seconds: float) -> World:
    """Return a world of real time, with BlazeFace, whose capacity is measured first."""
    frame = np.random.default_rng(0).random((192, 192, 3), np.float32)
    batch = 1  # on a CPU a batch of this model costs more than its frames one by one

    def make() -> si.OnnxBackend:
        return si.OnnxBackend(BLAZE, warmup=(batch,))

    async def measure(_: Any) -> float:
        timed = Timed(make(), time.monotonic_ns)
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=batch), timed) as service:
            await service.map([frame] * 200 * batch, concurrency=2 * batch)
        full = [one for one, size in zip(timed.seconds, timed.sizes, strict=True) if size == batch]
        return float(np.quantile(full, 0.25))  # a low quantile, because other processes only add time

    def on_loop(main: Callable[[Callable[[], int]], Any]) -> Any:
        return asyncio.run(main(time.monotonic_ns))

    return World("BlazeFace, one row per batch", frame, batch, on_loop(measure), make, on_loop, seconds)
