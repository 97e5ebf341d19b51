"""System shared memory with a Triton on this machine, over the payload of gRPC: 32 × 600 KB a batch, same model.

python benchmarks/bench_triton_shared_memory.py [--rounds N]

The server is a real Triton (benchmarks/servers); its model hands back what it gets, so that transport is what is
measured, both ways. Every way is timed in turn in each round; the figures are medians. The bar: at least 2 × faster.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from servers.environments import supported
from servers.triton_server import TritonServer

from streaminfer.backends.triton.shared_memory import RegionPool, required_bytes

BAR = 2.0
ROWS = 32
SHAPE = (ROWS, 3, 224, 224)
Array = npt.NDArray[Any]
Way = Callable[[str, Array], Awaitable[Array]]


OUTPUTS = {"image_identity": "y", "image_ends": "ends"}


class Ways:
    """The ways to send one batch and to have its answer as an array that nothing will change."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.pool = RegionPool(self._register, client.unregister_system_shared_memory, prefix="si_bench")

    async def _register(self, name: str, key: str, byte_size: int) -> None:
        await self._client.register_system_shared_memory(name, key, byte_size)

    async def payload(self, model: str, x: Array) -> Array:
        asked = triton.InferInput("x", x.shape, "FP32")
        asked.set_data_from_numpy(x)
        answer = await self._client.infer(model, [asked], outputs=[triton.InferRequestedOutput(OUTPUTS[model])])
        y: Array = answer.as_numpy(OUTPUTS[model])
        return y

    async def shared(self, model: str, x: Array) -> Array:
        y_shape = x.shape if model == "image_identity" else (len(x), 2)
        y_bytes = 4 * int(np.prod(y_shape))
        region = await self.pool.acquire(required_bytes([x.nbytes, y_bytes]))
        assert region is not None
        (start, size) = region.write({"x": x})["x"]
        (end, _) = region.reserve({"y": y_bytes})["y"]
        asked = triton.InferInput("x", x.shape, "FP32")
        asked.set_shared_memory(region.name, size, start)
        wanted = triton.InferRequestedOutput(OUTPUTS[model])
        wanted.set_shared_memory(region.name, y_bytes, end)
        answered = False
        try:
            await self._client.infer(model, [asked], outputs=[wanted])
            answered = True
            return region.read(end, np.float32, y_shape)
        finally:
            self.pool.release(region, answered=answered)


async def measure(server: TritonServer, model: str, rounds: int) -> dict[str, list[float]]:
    client = triton.InferenceServerClient(server.grpc_url)
    ways = Ways(client)
    every: dict[str, Way] = {"payload": ways.payload, "shared memory": ways.shared}
    times: dict[str, list[float]] = {name: [] for name in every}
    x = np.random.default_rng(0).random(SHAPE, np.float32)
    try:
        for number in range(-3, rounds):
            x[0, 0, 0, 0] = number
            for name, way in every.items():
                started = time.perf_counter()
                y = await way(model, x)
                took = time.perf_counter() - started
                assert y.flat[0] == number, f"{name}: a wrong answer"
                if number >= 0:
                    times[name].append(took)
    finally:
        await ways.pool.close()
        await client.close()
    return times


def copying(rounds: int) -> tuple[float, float]:
    """Seconds to copy a batch into warm memory, and out of it into new memory."""
    x, warm = np.ones(SHAPE, np.float32), np.empty(SHAPE, np.float32)
    into, out = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        np.copyto(warm, x)
        middle = time.perf_counter()
        copy = warm.copy()
        out.append(time.perf_counter() - middle)
        into.append(middle - started)
        del copy
    return statistics.median(into), statistics.median(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    if not supported():
        print("no Triton for this machine: it is a wheel for Linux on x86-64")
        return 2
    megabytes = 4 * np.prod(SHAPE) / 1e6
    print(f"{ROWS} rows, {megabytes:.1f} MB a batch, medians of {rounds} batches, one at a time")
    missed = False
    with TritonServer(["image_identity", "image_ends"]) as server:
        for model, what in (("image_identity", "as much back"), ("image_ends", "8 bytes a row back")):
            times = asyncio.run(measure(server, model, rounds))
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, values in times.items():
                slow = float(np.quantile(values, 0.9))
                print(f"  {what:20} {name:14} {medians[name] * 1e3:7.1f} ms   p90 {slow * 1e3:7.1f} ms")
            ratio = medians["payload"] / medians["shared memory"]
            missed |= ratio < BAR
            print(f"  {what:20} {'':14} {ratio:7.2f} × faster   bar ≥ {BAR:g}   {'ok' if ratio >= BAR else 'MISSED'}")
    into, out = copying(rounds)
    print(f"  of which copies here: {into * 1e3:.1f} ms in, {out * 1e3:.1f} ms out (what views would save)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
