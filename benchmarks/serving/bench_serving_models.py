"""Real models behind our gRPC server, Triton's and MLServer's: ``python benchmarks/run.py serving_models``.

silero (a chunk of 512 samples, from a state of zeros that is part of the graph) and BlazeFace full run in onnxruntime,
in one thread: behind `grpc_servicer`, an `AdaptiveBatcher` and an `OnnxBackend`, in Triton's python backend with its
dynamic batching, and in MLServer with its adaptive batching. Each request is one row, the same bytes for all. The load
is Poisson at 0.7 of the lower of our and Triton's capacity, which 32 callers find that always ask again. Rounds take
turns; a latency counts from when a request was due, and one without an answer counts as infinite. The CPU of a server,
its child processes included, says what a busy machine hides.
Bars: our p99 at most Triton's and MLServer's, as medians of the ratios of the rounds.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import grpc
import numpy as np
import onnx
from _lib.closed import answers_per_second
from onnx import helper
from servers.http_server import cpu_s, free_port
from servers.mlserver_server import MLServer
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
    """A model, and the name and shape of a row of its input and of its first output."""

    file: str
    input: str
    row: tuple[int, ...]
    output: str
    answer: tuple[int, ...]


MODELS = {
    "silero": Model("silero_vad_16k_op15.onnx", "input", (576,), "output", (1,)),
    "blaze_full": Model("blaze_full.onnx", "input", (192, 192, 3), "boxes", (2304, 16)),
}


def prepare(folder: Path) -> dict[str, Path]:
    """Write the models as files of one input, and return these: silero starts from zeros."""
    paths = {name: folder / model.file for name, model in MODELS.items()}
    for path in paths.values():
        graph = onnx.load(ASSETS / path.name)
        if any(one.name == "state" for one in graph.graph.input):
            constants = {"sr": np.array(16_000), "two": np.array([2]), "width": np.array([128]), "rows": np.array([0])}
            del graph.graph.input[1:]
            nodes = [
                *(helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
                  for name, value in constants.items()),
                helper.make_node("Shape", ["input"], ["input_shape"]),
                helper.make_node("Gather", ["input_shape", "rows"], ["batch_size"]),
                helper.make_node("Concat", ["two", "batch_size", "width"], ["state_shape"], axis=0),
                helper.make_node("ConstantOfShape", ["state_shape"], ["state"]),
            ]  # fmt: skip
            for at, node in enumerate(nodes):
                graph.graph.node.insert(at, node)
        onnx.save(graph, path)
    return paths


def run_ours(port: int, paths: dict[str, Path]) -> None:
    """Serve the models until the process ends."""

    async def serve() -> None:
        stacks = {}
        for name, path in paths.items():
            backend = si.OnnxBackend(path, outputs=[MODELS[name].output])
            stacks[name] = si.Stack(si.AdaptiveBatcher(max_batch_size=BATCH), backend)
            await stacks[name].start()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((si.serving.grpc_servicer(stacks),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


@contextlib.contextmanager
def ours(paths: dict[str, Path]) -> Iterator[tuple[str, int]]:
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=run_ours, args=(port, paths))
    process.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=120)
        yield f"127.0.0.1:{port}", process.pid or 0
    finally:
        process.kill()
        process.join()


def add_to_triton(server: TritonServer, paths: dict[str, Path]) -> None:
    """Write the models, with dynamic batching and no delay, into the repository, and load them."""
    for name, model in MODELS.items():
        folder = server.repository / name / "1"
        folder.mkdir(parents=True)
        shutil.copyfile(paths[name], folder / "model.onnx")
        shutil.copyfile(SOURCES / "onnx_rows.py", folder / "model.py")
        (folder.parent / "config.pbtxt").write_text(
            f'name: "{name}"\nbackend: "python"\nmax_batch_size: {BATCH}\ndynamic_batching {{ }}\n'
            f'input [ {{ name: "{model.input}" data_type: TYPE_FP32 dims: {list(model.row)} }} ]\n'
            f'output [ {{ name: "{model.output}" data_type: TYPE_FP32 dims: {list(model.answer)} }} ]\n'
            "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        )
        server.load(name)


async def compare(name: str, servers: dict[str, tuple[str, int]]) -> bool:
    """Measure a model on all servers, by their URL and process."""
    model = MODELS[name]
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[bytes(4 * math.prod(model.row))])
    request.inputs.add(name=model.input, datatype="FP32", shape=[1, *model.row])
    message = request.SerializeToString()
    async with contextlib.AsyncExitStack() as stack:
        calls: dict[str, Call] = {}
        for server, (url, _) in servers.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(url))
            calls[server] = _caller(channel.unary_unary(INFER), message)
            await answers_per_second(calls[server], CALLERS, 1.0)  # warms it up
        p99s: dict[str, list[float]] = {server: [] for server in calls}
        costs: dict[str, list[float]] = {server: [] for server in calls}
        capacities: dict[str, list[float]] = {"ours": [], "Triton": []}
        for number in range(ROUNDS):
            for server, found in capacities.items():
                found.append(await answers_per_second(calls[server], CALLERS, 1.0))
            rate = LOAD * min(found[-1] for found in capacities.values())
            due_s = arrivals.poisson(rate, max(50, round(rate * ROUND_S)), seed=number)
            for server in sorted(calls, reverse=bool(number % 2)):
                before_s = cpu_s(servers[server][1])
                p99s[server].append(await p99_s(calls[server], due_s))
                costs[server].append((cpu_s(servers[server][1]) - before_s) / len(due_s) * 1e3)
    found_s = ", ".join(f"{server} {statistics.median(found):.0f}/s" for server, found in capacities.items())
    print(f"{name}: load of the machine {os.getloadavg()[0]:.1f}; 32 callers at once: {found_s}")
    met = True
    for server in calls:
        p99_ms, cost_ms = statistics.median(p99s[server]) * 1e3, statistics.median(costs[server])
        line = f"{name}, {server}: p99 {p99_ms:.1f} ms, CPU {cost_ms:.2f} ms a request"
        if server != "ours":
            ratio = statistics.median(one / other for one, other in zip(p99s["ours"], p99s[server], strict=True))
            cost = statistics.median(one / other for one, other in zip(costs["ours"], costs[server], strict=True))
            met &= ratio <= 1
            line += f"; ours over it: {ratio:.2f}× (bar ≤ 1×: {'met' if ratio <= 1 else 'MISSED'}), CPU {cost:.2f}×"
        print(line)
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
    met = True
    with contextlib.ExitStack() as stack:
        paths = prepare(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        onnx_models = {
            name: (paths[name], (model.input, model.row), (model.output, model.answer))
            for name, model in MODELS.items()
        }
        servers = {"ours": stack.enter_context(ours(paths))}
        triton = stack.enter_context(TritonServer(["mlp"]))
        add_to_triton(triton, paths)
        mlserver = stack.enter_context(MLServer(onnx_models, max_batch_size=BATCH))
        servers |= {"Triton": (triton.grpc_url, triton.pid), "MLServer": (mlserver.grpc_url, mlserver.pid)}
        for name in names:
            met &= asyncio.run(compare(name, servers))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
