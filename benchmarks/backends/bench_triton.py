"""TritonBackend against a real Triton on loopback: ``python benchmarks/run.py triton [SECTION ...]``.

client    cost of one batch over the raw ``tritonclient.grpc.aio`` (InferInput, infer, as_numpy) with the same model, in
          alternation, with one batch at a time and with eight in flight.
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
import tritonclient.grpc.aio as raw
from _lib.figures import Figure
from servers.environments import supported
from servers.triton_server import TritonServer

from streaminfer.backends.triton import TritonBackend
from streaminfer.request import Batch, Request

WALL = Figure("time of a batch through TritonBackend", over="a raw tritonclient call over gRPC", at_most=1.15)
CPU = Figure("client CPU of a batch through TritonBackend", over="a raw tritonclient call over gRPC", at_most=1.15)
MODEL, INPUT, OUTPUT = "affine", "x", "y"
SIZES = ((1, 8), (32, 8), (32, 1024), (32, 37_632))
"""Rows, and floats per row; a batch of the last size has 4.8 MB."""

Ask = Callable[[npt.NDArray[Any]], Awaitable[Any]]


def by_backend(backend: TritonBackend) -> Ask:
    requests = [Request(None) for _ in range(max(rows for rows, _ in SIZES))]  # a cost of callers, not of batches

    async def ask(x: npt.NDArray[Any]) -> Any:
        return await backend.infer(Batch(x, requests[: len(x)], time.monotonic_ns() + 10**10))

    return ask


def by_tritonclient(client: Any) -> Ask:
    async def ask(x: npt.NDArray[Any]) -> Any:
        sent = raw.InferInput(INPUT, list(x.shape), "FP32")
        sent.set_data_from_numpy(x)
        answer = await client.infer(MODEL, [sent], client_timeout=10.0)
        return answer.as_numpy(OUTPUT)

    return ask


async def took(ask: Ask, x: npt.NDArray[Any], calls: int, at_once: int) -> tuple[float, float]:
    """Return wall and CPU microseconds per batch."""
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        await asyncio.gather(*(ask(x) for _ in range(at_once))) if at_once > 1 else await ask(x)
    per = 1e6 / calls / at_once
    return (time.perf_counter() - started) * per, (time.process_time() - cpu) * per


async def client_section(server: TritonServer) -> bool:
    """Print the time of a batch, through ours and raw, and return whether the bars are met."""
    backend = TritonBackend(server.grpc_url, MODEL, statistics_every_s=None)
    await backend.start()
    passed = True
    print(f"{'rows × floats':>14} {'at once':>8} {'':>12} {'wall, µs':>10} {'CPU of client, µs':>18}")
    async with raw.InferenceServerClient(server.grpc_url) as client:
        ways = {"tritonclient": by_tritonclient(client), "TritonBackend": by_backend(backend)}
        for rows, floats in SIZES:
            x = np.random.default_rng(0).random((rows, floats), np.float32)
            for ask in ways.values():
                answer = np.stack(list(await ask(x)))
                if not np.array_equal(answer, 2 * x + 1):
                    raise RuntimeError("a wrong answer")
            for at_once in (1, 8):
                calls = max((20 if rows * floats > 10**6 else 100) // at_once, 3)
                figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
                for number in range(14):
                    for name in list(ways)[:: 1 if number % 2 else -1]:
                        figures[name].append(await took(ways[name], x, calls, at_once))
                middle = {
                    name: [statistics.median(column) for column in zip(*pairs, strict=True)]
                    for name, pairs in figures.items()
                }
                for name, (wall, cpu) in middle.items():
                    print(f"{f'{rows} × {floats}':>14} {at_once:>8} {name:>14} {wall:>10.0f} {cpu:>16.0f}")
                case = f"{rows} × {floats:,} float32, {at_once} in flight"
                for column, figure in enumerate((WALL, CPU)):
                    both = zip(figures["TritonBackend"], figures["tritonclient"], strict=True)
                    passed &= figure.report([ours[column] / theirs[column] for ours, theirs in both], case=case)
    await backend.stop()
    return passed


SECTIONS = {"client": client_section}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION", help=", ".join(SECTIONS))
    wanted = parser.parse_args().sections or list(SECTIONS)
    if not supported():
        print("the servers' wheels are for Linux on x86-64")
        return 0
    with TritonServer([MODEL]) as server:
        outcomes = [asyncio.run(SECTIONS[name](server)) for name in wanted]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
