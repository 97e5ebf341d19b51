"""Run two models on one core, so that long batches of one do not make the other late.

    python examples/share_device.py [SECONDS]

Live cameras use a small face detector and need results within 50 ms; uploads use a large one, which is slow. Together
they are more load than the core can process. Needs the extra ``onnx``. Run it from the root of a checkout.
"""

import asyncio
import sys
import time
from pathlib import Path

import numpy as np

import streaminfer as si
from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import arrivals

ASSETS = Path(__file__).parent / "assets"
NOISE = np.random.default_rng(0)


def stack(name: str, size: int, *, slo_s: float, device: si.Device) -> si.Stack:
    """Return a service that shares the device with others."""
    example = NOISE.uniform(-1, 1, (size, size, 3)).astype(np.float32)
    model = si.OnnxBackend(ASSETS / f"{name}.onnx", example=example)
    model.name = name  # name in the device's statistics and weights
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8, slo_s=slo_s, device=device), model)


async def load(service: si.Stack, size: int, rate: float, seconds: float, seed: int) -> tuple[int, int]:
    """Send requests at random instants; return the number on time, and the number sent."""
    picture = NOISE.uniform(-1, 1, (size, size, 3)).astype(np.float32)
    start_ns = time.monotonic_ns()
    due_ns = [start_ns + round(at * 1e9) for at in arrivals.poisson(rate, round(rate * seconds), seed)]
    sending = OpenLoop(lambda _: service(picture), due_ns, errors=(si.DeadlineExceeded, si.Overloaded))
    await sending.run()
    return len(due_ns) - len(sending.failures), len(due_ns)


async def main(
    seconds: float = 5.0, *, cameras_slo_s: float = 0.05, uploads_slo_s: float = 0.5
) -> si.batching.DeviceStatistics:
    """Print each model's share of the core, and how many of its requests were on time."""
    device = si.Device("core", weights={"blaze_front": 2})
    async with (
        stack("blaze_front", 128, slo_s=cameras_slo_s, device=device) as cameras,
        stack("blaze_full", 192, slo_s=uploads_slo_s, device=device) as uploads,
    ):
        on_time = await asyncio.gather(load(cameras, 128, 150, seconds, 1), load(uploads, 192, 150, seconds, 2))
    statistics = device.statistics()
    for (name, had), (count, sent) in zip(statistics.models.items(), on_time, strict=True):
        print(
            f"{name}: {count} of {sent} requests on time, {had.batches} batches in {had.busy_s:.2f} s, passed over "
            f"{had.waits} times, for {had.longest_wait_s * 1e3:.0f} ms at most"
        )
    return statistics


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:2])))
