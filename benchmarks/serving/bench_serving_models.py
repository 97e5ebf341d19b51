"""Real models behind our gRPC server, Triton's and MLServer's: ``python benchmarks/run.py serving_models``.

silero (a chunk of 512 samples, from a state of zeros) and BlazeFace full run in onnxruntime by the same code in each
server, in one thread: behind `grpc_servicer` and an `AdaptiveBatcher`, in Triton's python backend with its dynamic
batching, and in MLServer with its adaptive batching. Each request is one row, the same bytes for all. The load is
Poisson at 0.7 of the lower of our and Triton's capacity, which 32 callers find that always ask again. Rounds take
turns; a latency counts from when a request was due, and one without an answer counts as infinite.
Bars: our p99 at most Triton's and MLServer's, as medians of the ratios of the rounds.
"""

import asyncio
import contextlib
import math
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import grpc
import numpy as np
from _lib.closed import answers_per_second
from servers.http_server import free_port
from servers.mlserver_server import MLServer
from servers.models.onnx_rows import load
from servers.triton_server import SOURCES, TritonServer
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si
from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import arrivals

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
BATCH, CALLERS, LOAD, ROUNDS, ROUND_S = 32, 32, 0.7, 5, 4.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
Call = Callable[[int], Awaitable[Any]]


@attrs.frozen
class Model:
    """A model and the shape of a row of its input and output."""

    path: Path
    row: tuple[int, ...]
    answer: tuple[int, ...]


MODELS = {
    "silero": Model(ASSETS / "silero_vad_16k_op15.onnx", (576,), (1,)),
    "blaze_full": Model(ASSETS / "blaze_full.onnx", (192, 192, 3), (2304, 16)),
}


def run_ours(port: int) -> None:
    """Serve the models until the process ends."""

    async def serve() -> None:
        stacks = {}
        for name, model in MODELS.items():
            run = load(model.path)
            backend = si.CpuBackend(_named(run), example={"x": np.zeros(model.row, np.float32)})
            stacks[name] = si.Stack(si.AdaptiveBatcher(max_batch_size=BATCH), backend)
            await stacks[name].start()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((si.serving.grpc_servicer(stacks),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


def _named(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda inputs: {"y": run(inputs["x"])}


@contextlib.contextmanager
def ours() -> Iterator[str]:
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=run_ours, args=(port,))
    process.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=120)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def add_to_triton(server: TritonServer) -> None:
    """Write the models, with dynamic batching and no delay, into the repository, and load them."""
    for name, model in MODELS.items():
        folder = server.repository / name / "1"
        folder.mkdir(parents=True)
        shutil.copyfile(model.path, folder / "model.onnx")
        shutil.copyfile(SOURCES / "onnx_rows.py", folder / "model.py")
        (folder.parent / "config.pbtxt").write_text(
            f'name: "{name}"\nbackend: "python"\nmax_batch_size: {BATCH}\ndynamic_batching {{ }}\n'
            f'input [ {{ name: "x" data_type: TYPE_FP32 dims: {list(model.row)} }} ]\n'
            f'output [ {{ name: "y" data_type: TYPE_FP32 dims: {list(model.answer)} }} ]\n'
            "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        )
        server.load(name)


async def compare(name: str, urls: dict[str, str]) -> bool:
    model = MODELS[name]
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[bytes(4 * math.prod(model.row))])
    request.inputs.add(name="x", datatype="FP32", shape=[1, *model.row])
    message = request.SerializeToString()
    async with contextlib.AsyncExitStack() as stack:
        calls: dict[str, Call] = {}
        for server, url in urls.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(url))
            calls[server] = _caller(channel.unary_unary(INFER), message)
            await answers_per_second(calls[server], CALLERS, 1.0)  # warms it up
        p99s: dict[str, list[float]] = {server: [] for server in calls}
        for number in range(ROUNDS):
            capacity = min([await answers_per_second(calls[server], CALLERS, 1.0) for server in ("ours", "Triton")])
            count = max(50, round(LOAD * capacity * ROUND_S))
            due_s = arrivals.poisson(LOAD * capacity, count, seed=number)
            for server in sorted(calls, reverse=bool(number % 2)):
                p99s[server].append(await p99_s(calls[server], due_s))
    met = True
    for server in ("Triton", "MLServer"):
        ratio = statistics.median(one / other for one, other in zip(p99s["ours"], p99s[server], strict=True))
        met &= ratio <= 1
        taken, other = (statistics.median(p99s[one]) * 1e3 for one in ("ours", server))
        verdict = f"bar ≤ 1×: {'met' if ratio <= 1 else 'MISSED'}"
        print(f"{name}: p99 {taken:.1f} ms, {server} {other:.1f} ms: {ratio:.2f}× ({verdict})")
    return met


def _caller(ask: Any, message: bytes) -> Call:
    async def call(_: int) -> None:
        await ask(message, timeout=30)

    return call


async def p99_s(call: Call, due_s: Any) -> float:
    start_ns = time.monotonic_ns() + 50_000_000
    due_ns = [start_ns + round(one * 1e9) for one in due_s]
    sending = OpenLoop(call, due_ns, errors=(grpc.RpcError,))
    await sending.run()
    taken = sorted((at - due) / 1e9 if at else math.inf for at, due in zip(sending.completed_ns, due_ns, strict=True))
    return taken[math.ceil(0.99 * len(taken)) - 1]


def main() -> int:
    names = sys.argv[1:] or list(MODELS)
    onnx = {name: (model.path, model.row, model.answer) for name, model in MODELS.items()}
    met = True
    with ours() as url, TritonServer(["mlp"]) as triton, MLServer(onnx, max_batch_size=BATCH) as mlserver:
        add_to_triton(triton)
        urls = {"ours": url, "Triton": triton.grpc_url, "MLServer": mlserver.grpc_url}
        for name in names:
            met &= asyncio.run(compare(name, urls))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
