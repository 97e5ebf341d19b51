"""System shared memory with a Triton on this machine, over gRPC payloads: batches of 32 × 600 KB, same model.

python benchmarks/run.py triton_shared_memory [--rounds N]

The server is a real Triton (benchmarks/servers). Its model returns its inputs, so the benchmark measures the transport
in both directions: through `TritonBackend` over either protocol, and through a raw ``tritonclient``. Every way is timed
in turn in each round; the figures are medians, for the response size at which shared memory gains less.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from _lib.figures import Figure
from servers.environments import supported
from servers.triton_server import TritonServer

from streaminfer.backends.triton import TritonBackend
from streaminfer.request import Batch, Request

OVER_OWN = Figure(
    "speed of TritonBackend with shared memory, 32 × 600 KB",
    over="TritonBackend without it, over gRPC",
    form="{:.1f}×",
    at_least=2.0,
)
OVER_RAW = Figure(
    "speed of TritonBackend with shared memory, 32 × 600 KB, beside tritonclient",
    over="raw tritonclient without it, over gRPC",
    form="{:.1f}×",
    at_least=2.0,
)
ROWS = 32
SHAPE = (ROWS, 3, 224, 224)
Array = npt.NDArray[Any]
Way = Callable[[Array], Awaitable[Sequence[Any]]]
RAW, PAYLOAD, SHARED = "tritonclient gRPC", "gRPC", "gRPC, shared memory"
WAYS: dict[str, tuple[Literal["grpc", "http"], bool]] = {
    PAYLOAD: ("grpc", False),
    SHARED: ("grpc", True),
    "HTTP": ("http", False),
    "HTTP, shared memory": ("http", True),
}
"""Protocol of a `TritonBackend`, and whether its tensors are in shared memory."""
OUTPUTS = {"image_identity": "y", "image_ends": "ends"}


def by_tritonclient(client: Any, model: str) -> Way:
    async def ask(x: Array) -> Sequence[Any]:
        asked = triton.InferInput("x", x.shape, "FP32")
        asked.set_data_from_numpy(x)
        answer = await client.infer(model, [asked], outputs=[triton.InferRequestedOutput(OUTPUTS[model])])
        rows: Array = answer.as_numpy(OUTPUTS[model])
        return list(rows)

    return ask


def by_backend(backend: TritonBackend) -> Way:
    requests = [Request(None)] * ROWS

    async def ask(x: Array) -> Sequence[Any]:
        return await backend.infer(Batch(x, requests, time.monotonic_ns() + 60 * 10**9))

    return ask


async def measure(server: TritonServer, model: str, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in (RAW, *WAYS)}
    x = np.random.default_rng(0).random(SHAPE, np.float32)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(triton.InferenceServerClient(server.grpc_url))
        every = {RAW: by_tritonclient(client, model)}
        for name, (protocol, shared_memory) in WAYS.items():
            url = server.grpc_url if protocol == "grpc" else server.http_url
            backend = TritonBackend(url, model, protocol=protocol, shared_memory=shared_memory, statistics_every_s=None)
            await backend.start()
            stack.push_async_callback(backend.stop)
            every[name] = by_backend(backend)
        for number in range(-3, rounds):
            x[0, 0, 0, 0] = number
            for name, way in every.items():
                started = time.perf_counter()
                rows = await way(x)
                took = time.perf_counter() - started
                assert rows[0].flat[0] == number, f"{name}: a wrong answer"
                if number >= 0:
                    times[name].append(took)
    return times


def copying(rounds: int) -> tuple[float, float]:
    """Return the seconds to copy a batch into warm memory, and from there into new memory."""
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
    speeds: dict[str, list[float]] = {RAW: [], PAYLOAD: []}
    with TritonServer(["image_identity", "image_ends"]) as server:
        for model, what in (("image_identity", "as much back"), ("image_ends", "8 bytes a row back")):
            times = asyncio.run(measure(server, model, rounds))
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, values in times.items():
                slow = float(np.quantile(values, 0.9))
                print(f"  {what:20} {name:20} {medians[name] * 1e3:7.1f} ms   p90 {slow * 1e3:7.1f} ms")
            for payload, ratios in speeds.items():
                ratios.append(medians[payload] / medians[SHARED])
    into, out = copying(rounds)
    print(f"  of which copies here: {into * 1e3:.1f} ms in, {out * 1e3:.1f} ms out (what views would save)")
    met = [
        figure.report(min(ratios), note=f"{max(ratios):.1f}× for the other size of response")
        for figure, ratios in ((OVER_OWN, speeds[PAYLOAD]), (OVER_RAW, speeds[RAW]))
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
