"""Real models behind our servers, Triton's and MLServer's: ``python benchmarks/run.py serving_models [NAME ...]``.

silero (a chunk of 512 samples, from a state of zeros that is part of the graph) and BlazeFace full run in onnxruntime,
in one thread, on these servers:

* ours: `asgi_app` under uvicorn and `grpc_servicer`, each with an `AdaptiveBatcher` and an `OnnxBackend` on uvloop;
* Triton's python backend with its dynamic batching;
* MLServer with its adaptive batching, only over gRPC, because it takes no binary tensors over HTTP.

In our server, silero's batches run on the event loop and those of BlazeFace in threads; each server has its own
session. Each request is one row, the same bytes for all servers, and all servers share the cores with the client. The
load is Poisson, with the same rate for all servers: 0.7 of the lower of our and Triton's capacity over that transport.
The capacity is the median, over the rounds so far, of the throughput of 32 callers in a closed loop. Servers take
turns. Latency counts from when a request was due; it is infinite if a request has no response 2 s after the last one
was sent. The benchmark restarts a server that leaves such requests before its next turn, so that no backlog disturbs
others. The CPU of a server, with its child processes, shows costs that a busy machine hides, and the lateness of the
client shows its part in all latencies. The client speaks just enough HTTP/2 for these requests, because a client of
``grpc.aio`` takes as much of a core as a server.

A round is quiet if all other processes of the machine took at most half a core in each server's turn. Beside busy
processes the kernel's scheduler decides the result, because it gives a server with many threads more CPU than one with
few. The benchmark repeats rounds until enough of them were quiet, up to a limit, and prints the ratios of all rounds
too.
"""

import argparse
import asyncio
import contextlib
import json
import math
import operator
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
from _lib.closed import answers_per_second
from _lib.figures import Figure
from _lib.grpc_client import GrpcClient
from _lib.http_client import HttpClient
from onnx import helper
from servers.http_server import HttpServer, cpu_s
from servers.mlserver_server import MLServer
from servers.onnx_apps import FOLDER, MAX_BATCH_SIZE, MODELS, GrpcServer
from servers.triton_server import SOURCES, TritonServer
from tritonclient.grpc import service_pb2 as pb

from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import arrivals

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
CALLERS, LOAD, ROUND_S = 32, 0.7, 4.0
WARM_UP_S, DRAIN_S = 1.0, 2.0
QUIET_ROUNDS, MAX_ROUNDS, MAX_OTHERS = 5, 8, 0.5
INFER = "/inference.GRPCInferenceService/ModelInfer"
P99_TRITON = Figure("p99 of requests at 0.7 of capacity, beside Triton", over="Triton's Python backend", at_most=1.0)
P99_MLSERVER = Figure("p99 of requests at 0.7 of capacity, beside MLServer", over="MLServer", at_most=1.0)
CPU_TRITON = Figure("CPU of the server per request at 0.7 of capacity", over="Triton's Python backend")
TITLES = {"silero": "silero", "blaze_full": "BlazeFace full"}
P99 = {"Triton": P99_TRITON, "MLServer": P99_MLSERVER}
Call = Callable[[int], Awaitable[Any]]


@attrs.frozen
class Server:
    """Running server.

    Attributes:
        url: ``host:port``.
        process: its process, which has a ``pid``.
        restart: starts the server again, without its requests in flight.
    """

    url: str
    process: Any
    restart: Callable[[], None]

    @property
    def pid(self) -> int:
        """Id of the current process."""
        return int(self.process.pid)


@attrs.frozen
class Round:
    """Measurements of one server in one round.

    Attributes:
        p99_s: p99 of the latencies.
        late_s: p99 of the time from when a request was due until it was sent.
        cpu_s: CPU seconds of the server per request.
        others: cores that all processes but the server and this one used.
        unanswered: number of requests without a response.
    """

    p99_s: float
    late_s: float
    cpu_s: float
    others: float
    unanswered: int


def prepare(folder: Path) -> None:
    """Write the models as files with one input; the state of silero is zeros in its graph."""
    for path in (folder / model.file for model in MODELS.values()):
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


def http_server(folder: Path) -> HttpServer:
    command = [
        "-m",
        "uvicorn",
        "--log-level",
        "critical",
        "--port",
        "{port}",
        "--factory",
        "servers.onnx_apps:http_app",
    ]
    return HttpServer(command, "/v2/health/ready", variables={FOLDER: str(folder)})


def add_to_triton(server: TritonServer, source: Path) -> None:
    """Write the models, with dynamic batching and no delay, into the repository, and load them."""
    for name, model in MODELS.items():
        folder = server.repository / name / "1"
        folder.mkdir(parents=True)
        shutil.copyfile(source / model.file, folder / "model.onnx")
        shutil.copyfile(SOURCES / "onnx_rows.py", folder / "model.py")
        (folder.parent / "config.pbtxt").write_text(
            f'name: "{name}"\nbackend: "python"\nmax_batch_size: {MAX_BATCH_SIZE}\ndynamic_batching {{ }}\n'
            f'input [ {{ name: "{model.input}" data_type: TYPE_FP32 dims: {list(model.row)} }} ]\n'
            f'output [ {{ name: "{model.output}" data_type: TYPE_FP32 dims: {list(model.answer)} }} ]\n'
            "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        )
        server.load(name)


@contextlib.asynccontextmanager
async def grpc_call(name: str, url: str) -> AsyncIterator[Call]:
    """Yield a function that sends a request to a model over gRPC."""
    model = MODELS[name]
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[bytes(4 * math.prod(model.row))])
    request.inputs.add(name=model.input, datatype="FP32", shape=[1, *model.row])
    async with GrpcClient(url, INFER, request.SerializeToString()) as client:
        yield client.call


@contextlib.asynccontextmanager
async def http_call(name: str, url: str) -> AsyncIterator[Call]:
    """Yield a function that sends a request to a model over HTTP, with binary tensors both ways."""
    model = MODELS[name]
    size = {"binary_data_size": 4 * math.prod(model.row)}
    tensor = {"name": model.input, "datatype": "FP32", "shape": [1, *model.row], "parameters": size}
    output = {"name": model.output, "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    body = head + bytes(4 * math.prod(model.row))
    async with HttpClient(url, f"/v2/models/{name}/infer", body, headers) as client:
        yield client.call


CALLS = {"HTTP": http_call, "gRPC": grpc_call}


async def compare(name: str, transport: str, servers: dict[str, Server]) -> bool:
    """Measure a model on all servers of a transport."""
    rounds: dict[str, list[Round]] = {server: [] for server in servers}
    capacities: dict[str, list[float]] = {"ours": [], "Triton": []}
    rate, number = 0.0, 0
    async with contextlib.AsyncExitStack() as stack:
        calls = {
            server: await stack.enter_async_context(warm_call(name, transport, at)) for server, at in servers.items()
        }
        while number < MAX_ROUNDS and len(quiet_rounds(rounds)) < QUIET_ROUNDS:
            for server, found in capacities.items():
                found.append(await answers_per_second(calls[server], CALLERS, 1.0))
            rate = LOAD * min(map(statistics.median, capacities.values()))
            due_s = arrivals.poisson(rate, max(50, round(rate * ROUND_S)), seed=number)
            for server in sorted(servers, reverse=bool(number % 2)):
                at = servers[server]
                rounds[server].append(await measure(calls[server], due_s, at.pid))
                if rounds[server][-1].unanswered:
                    await asyncio.to_thread(at.restart)
                    calls[server] = await stack.enter_async_context(warm_call(name, transport, at))
            number += 1
    found_s = ", ".join(f"{server} {statistics.median(found):.0f}/s" for server, found in capacities.items())
    print(f"{name} over {transport}: load of the machine {os.getloadavg()[0]:.1f}; 32 callers at once: {found_s}; "
          f"sent at {rate:.0f}/s")  # fmt: skip
    return report(f"{TITLES[name]} over {transport}", rounds)


@contextlib.asynccontextmanager
async def warm_call(name: str, transport: str, server: Server) -> AsyncIterator[Call]:
    """Yield a function that sends a request to a server, after a second of warm-up."""
    async with CALLS[transport](name, server.url) as call:
        await answers_per_second(call, CALLERS, WARM_UP_S)
        yield call


def quiet_rounds(rounds: dict[str, list[Round]]) -> list[int]:
    """Return the numbers of the rounds in which other processes took little CPU in each server's turn."""
    turns = enumerate(zip(*rounds.values(), strict=True))
    return [number for number, found in turns if all(one.others <= MAX_OTHERS for one in found)]


def report(title: str, rounds: dict[str, list[Round]]) -> bool:
    """Print a line for each server; return true if our p99 is at most that of each other server."""
    quiet = quiet_rounds(rounds)
    total = len(rounds["ours"])
    print(f"{title}: {len(quiet)} of {total} rounds were quiet" + ("" if quiet else ", so all of them decide"))
    chosen, met = quiet or range(total), True
    for server, found in rounds.items():
        p99_ms, late_ms, cpu_ms = (
            statistics.median(of(found[number]) for number in chosen) * 1e3
            for of in (operator.attrgetter("p99_s"), operator.attrgetter("late_s"), operator.attrgetter("cpu_s"))
        )
        print(f"{title}, {server}: p99 {p99_ms:.1f} ms (sent late: {late_ms:.1f}), CPU {cpu_ms:.2f} ms a request")
        if server == "ours":
            continue
        ratios = [
            one.p99_s / other.p99_s if math.isfinite(one.p99_s) else math.inf
            for one, other in zip(rounds["ours"], found, strict=True)
        ]
        note = f"{len(quiet)} of {total} rounds quiet, {statistics.median(ratios):.2f}× in all of them"
        met &= P99[server].report([ratios[number] for number in chosen], case=title, note=note)
        if server == "Triton":
            CPU_TRITON.report([rounds["ours"][number].cpu_s / found[number].cpu_s for number in chosen], case=title)
    return met


async def measure(call: Call, due_s: Any, pid: int) -> Round:
    """Send the requests when they are due; return the measurements of the server."""
    began_s, server_s, all_s, own_s = time.monotonic(), cpu_s(pid), machine_s(), time.process_time()
    start_ns = time.monotonic_ns() + 50_000_000
    due_ns = [start_ns + round(one * 1e9) for one in due_s]
    sending = OpenLoop(call, due_ns, errors=(OSError,))
    await sending.run(drain_s=DRAIN_S)
    server_s, all_s, own_s = cpu_s(pid) - server_s, machine_s() - all_s, time.process_time() - own_s
    others = (all_s - server_s - own_s) / (time.monotonic() - began_s)
    taken = [(at - due) / 1e9 if at else math.inf for at, due in zip(sending.completed_ns, due_ns, strict=True)]
    late = [(at - due) / 1e9 for at, due in zip(sending.sent_ns, due_ns, strict=True)]
    return Round(p99(taken), p99(late), server_s / len(due_s), others, sum(not at for at in sending.completed_ns))


def machine_s() -> float:
    """Return the CPU seconds that all processes together have used."""
    times = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = times[3:5]
    return (sum(times) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--transport", nargs="+", choices=CALLS, default=list(CALLS), help="default: both")
    options = parser.parse_args()
    met = True
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder)
        onnx_models = {
            name: (folder / model.file, (model.input, model.row), (model.output, model.answer))
            for name, model in MODELS.items()
        }
        triton = stack.enter_context(TritonServer(["mlp"]))
        add_to_triton(triton, folder)

        def restart_triton() -> None:
            triton.restart()
            for name in MODELS:
                triton.load(name)

        servers: dict[str, dict[str, Server]] = {}
        if "HTTP" in options.transport:
            over_http = stack.enter_context(http_server(folder))
            servers["HTTP"] = {
                "ours": Server(f"127.0.0.1:{over_http.port}", over_http, over_http.restart),
                "Triton": Server(triton.http_url, triton, restart_triton),
            }
        if "gRPC" in options.transport:
            over_grpc = stack.enter_context(GrpcServer(folder))
            mlserver = stack.enter_context(MLServer(onnx_models, max_batch_size=MAX_BATCH_SIZE))
            servers["gRPC"] = {
                "ours": Server(over_grpc.url, over_grpc, over_grpc.restart),
                "Triton": Server(triton.grpc_url, triton, restart_triton),
                "MLServer": Server(mlserver.grpc_url, mlserver, mlserver.restart),
            }
        for name in options.names or MODELS:
            for transport, found in servers.items():
                met &= asyncio.run(compare(name, transport, found))
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
