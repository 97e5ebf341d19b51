"""Two real face detectors behind one router, with more frames than the better detector can process.

The full model reads 192² pixels, the front model 128²; the router makes the smaller image only for requests that go
to the front model. The example takes some seconds on a CPU. Run it from the root of a checkout.
"""

import asyncio
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import streaminfer as si
from streaminfer.routing import FallbackRouter, Route
from streaminfer.telemetry import BurnSignal

ASSETS = Path(__file__).resolve().parent / "assets"
LIMIT_S = 0.15
SECONDS = 2.5


def to_128(inputs: dict[str, Any]) -> dict[str, Any]:
    """Shrink 192² pixels to 128²: each new pixel is the nearest old one."""
    nearest = (np.arange(128) * 1.5).astype(np.intp)
    return {"input": np.ascontiguousarray(inputs["input"][nearest[:, None], nearest])}


def detector(file: str) -> list[Any]:
    """Return a model behind a batcher that plans; one thread, because both models share this machine."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, slo_s=LIMIT_S, policy="lookahead")
    return [batcher, si.OnnxBackend(ASSETS / file, threads=1)]


async def offer(faces: si.Stack, rate: float) -> None:
    """Send frames at a steady rate, as an open loop, and print their outcomes."""
    frame = {"input": np.random.default_rng(1).uniform(-1, 1, (192, 192, 3)).astype(np.float32)}
    ended: Counter[str] = Counter()

    async def ask() -> None:
        started_s = time.perf_counter()
        try:
            response = await faces.call(si.Request(frame))
        except si.errors.StreamInferError as error:
            ended[type(error).__name__] += 1
        else:
            late = time.perf_counter() - started_s > LIMIT_S
            ended["late" if late else response.source] += 1

    calls = []
    begun_s = time.perf_counter()
    for number in range(math.ceil(rate * SECONDS)):  # at least one, however slow the machine is
        await asyncio.sleep(max(begun_s + number / rate - time.perf_counter(), 0))
        calls.append(asyncio.ensure_future(ask()))
    await asyncio.gather(*calls)
    print(f"{rate:5.0f} frames a second: " + ", ".join(f"{what} {count}" for what, count in ended.most_common()))


async def main() -> None:
    """Send frames at half the rate of the full model, then at twice its rate, then at half again."""
    slo = si.SLO("faces", threshold_s=LIMIT_S, signal=BurnSignal(window_s=1.0))
    router = FallbackRouter(
        Route("full", detector("blaze_full.onnx"), quality=1.0, cost=3.4),
        Route("front", detector("blaze_front.onnx"), quality=0.8, cost=1.0, prepare=to_128),
        slo=slo,
    )
    async with si.Stack(si.Telemetry("faces", slo=slo), router) as faces:
        frame = {"input": np.zeros((192, 192, 3), np.float32)}
        started_s = time.perf_counter()
        for _ in range(40):
            await faces.call(si.Request(frame))
        alone = 40 / (time.perf_counter() - started_s)
        for factor in (0.5, 2.0, 0.5):
            await offer(faces, alone * factor)
        seen = router.statistics()
        print(f"mean quality {seen.mean_quality:.2f}; why not the full model: {seen.reasons}")


if __name__ == "__main__":
    si.warmup()
    asyncio.run(main())
