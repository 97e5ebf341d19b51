"""The server beside a bare echo of the same bytes: ``python benchmarks/run.py serving [SECTION ...]``.

http      requests per second of a no-op model through 64 connections of wrk, over those of a bare ASGI echo on the
          same server, uvicorn and granian in a separate environment
grpc      the same over one channel of grpc.aio
copies    100 bodies of 600 KB: peak memory to read a body, over its size; a copy is 1, plus unused space of the buffer
hostile   10,000 malformed or hostile requests, half over REST and half over gRPC: number without an allowed status

Server and clients share the cores. Rounds alternate.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from _lib.figures import Figure
from _lib.hostile_bodies import ALLOWED_GRPC, ALLOWED_REST, grpc_message, rest_request
from _lib.http_load import Wrk
from servers.http_apps import no_op_stack
from servers.http_server import asgi_server, cpu_s
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si

HTTP_RATE = Figure(
    "requests per second of a no-op model over HTTP, 64 connections",
    over="a bare ASGI echo on the same server",
    at_least=0.6,
)
GRPC_RATE = Figure(
    "requests per second of a no-op model over gRPC, 64 callers", over="a bare echo of grpc.aio", at_least=0.7
)
CPU_RATE = Figure("requests per CPU second of the server, a no-op model", over="a bare echo on the same server")
COPIES = Figure("memory allocated to read a body of 600 KB that comes in pieces", form="{:.2f} bodies", at_most=1.3)
HOSTILE = Figure("hostile requests over REST and gRPC whose status is not allowed", form="{:.0f}", at_most=0)
CONNECTIONS, ROUNDS, ROUND_S = 64, 7, 1.5
PATH, INFER = "/v2/models/m/infer", "/inference.GRPCInferenceService/ModelInfer"
Measure = Callable[[int], tuple[int, float]]
X = np.zeros((1, 16), np.float32)
BODY_BYTES = 600_000


def _same(rows: Any) -> Any:
    return rows


def http_body(array: Any) -> tuple[bytes, int]:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": array.shape}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + array.tobytes(), len(head)


def run_grpc(ours: bool, port: int) -> None:
    async def serve() -> None:
        server = grpc.aio.server()
        stack = no_op_stack()
        if ours:
            await stack.start()
            server.add_generic_rpc_handlers((si.serving.grpc_servicer({"m": stack}),))
        else:
            handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(_echo_message)}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
            )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


async def _echo_message(message: bytes, _: Any) -> bytes:
    return message


@contextlib.contextmanager
def in_process(run: Callable[[bool, int], None], *, ours: bool) -> Iterator[tuple[int, int]]:
    """Run a server in a separate process; yield its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=run, args=(ours, port))
    process.start()
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the gRPC server does not listen after 60 s")
        yield port, process.pid or 0
    finally:
        process.kill()
        process.join()


async def grpc_rate(port: int) -> tuple[int, float]:
    call = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    call.inputs.add(name="inputs", datatype="FP32", shape=X.shape)
    message = call.SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(INFER)

        async def client(ends_s: float) -> int:
            answered = 0
            while time.perf_counter() < ends_s:
                await ask(message, timeout=30)
                answered += 1
            return answered

        return await count(client)


async def count(client: Callable[[float], Awaitable[int]]) -> tuple[int, float]:
    """Return the number of requests of all connections together, and the seconds that they took."""
    started_s = time.perf_counter()
    answered = await asyncio.gather(*(client(started_s + ROUND_S) for _ in range(CONNECTIONS)))
    return sum(answered), time.perf_counter() - started_s


def compare(
    figure: Figure, server: str, transport: str, ports: tuple[int, int], pids: tuple[int, int], measure: Measure
) -> bool:
    """Alternate rounds of our server and the bare one, and report the ratios."""
    rates: dict[int, list[float]] = {port: [] for port in ports}
    costs: dict[int, list[float]] = {port: [] for port in ports}
    for number in range(ROUNDS + 1):
        for port, pid in list(zip(ports, pids, strict=True))[:: 1 if number % 2 else -1]:
            before_s = cpu_s(pid)
            answered, took_s = measure(port)
            if number:  # the first round warms up
                rates[port].append(answered / took_s)
                costs[port].append((cpu_s(pid) - before_s) / answered * 1e6)
    ours, bare = ports
    rate, bare_rate = (statistics.median(rates[port]) for port in ports)
    cost, bare_cost = (statistics.median(costs[port]) for port in ports)
    ratios = [one / other for one, other in zip(rates[ours], rates[bare], strict=True)]
    met = figure.report(ratios, case=server, note=f"{rate:,.0f}/s, echo {bare_rate:,.0f}/s")
    cpu_ratios = [other / one for one, other in zip(costs[ours], costs[bare], strict=True)]
    case = ", ".join(part for part in (transport, server) if part)
    CPU_RATE.report(cpu_ratios, case=case, note=f"{cost:.0f} µs a request, echo {bare_cost:.0f} µs")
    return met


def http_section() -> bool:
    body, length = http_body(X)
    with tempfile.TemporaryDirectory() as folder:
        load = Wrk(Path(folder), body, {"Inference-Header-Content-Length": str(length)}, CONNECTIONS)
        met = True
        for server in ("uvicorn", "granian"):
            with asgi_server(server, "ours") as ours, asgi_server(server, "echo") as bare:
                ports, pids = (ours.port, bare.port), (ours.pid, bare.pid)
                met &= compare(HTTP_RATE, server, "HTTP", ports, pids, lambda port: load.run(port, PATH, ROUND_S))
    return met


def grpc_section() -> bool:
    with in_process(run_grpc, ours=True) as ours, in_process(run_grpc, ours=False) as bare:
        ports, pids = zip(ours, bare, strict=True)
        return compare(GRPC_RATE, "", "gRPC", ports, pids, lambda port: asyncio.run(grpc_rate(port)))


class Noting:
    """Service that records the peak of allocated memory at each request, and fails if the array is not a view."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    async def call(self, request: si.Request) -> si.Response:
        self.peaks.append(tracemalloc.get_traced_memory()[1])
        if request.inputs.flags.owndata:
            raise RuntimeError("the tensor was copied")
        return si.Response(np.zeros(1))


def copies_section() -> bool:
    body, length = http_body(np.zeros((1, BODY_BYTES // 4), np.float32))
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    headers = {"inference-header-content-length": str(length), "content-length": str(len(body))}
    service = Noting()
    stack = si.Stack(service)
    app = si.serving.asgi_app({"m": stack})
    befores: list[int] = []

    async def read_all() -> None:
        async with app:
            for _ in range(100):
                tracemalloc.reset_peak()
                befores.append(tracemalloc.get_traced_memory()[0])
                if await rest_status(app, "POST", PATH, headers, *chunks) != 200:
                    raise RuntimeError("a request failed")

    tracemalloc.start()
    asyncio.run(read_all())
    tracemalloc.stop()
    most = max((peak - before) / len(body) for peak, before in zip(service.peaks, befores, strict=True))
    return COPIES.report(most, note="the most of 100; tensors are views")


def hostile_section() -> bool:
    found = asyncio.run(hostile_statuses())
    allowed = ALLOWED_GRPC | {str(status) for status in ALLOWED_REST}
    wrong = 10_000 - sum(count for status, count in found.items() if status in allowed)
    print(f"statuses of hostile requests: {dict(sorted(found.items()))}")
    return HOSTILE.report(wrong, of=10_000)


async def hostile_statuses() -> collections.Counter[str]:
    rng = random.Random(18)
    found: collections.Counter[str] = collections.Counter()
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), si.CpuBackend(_same, executor="inline"))
    app = si.serving.asgi_app({"m": stack})
    async with stack, grpc_channel(si.serving.grpc_servicer({"m": stack})) as channel:
        infer = channel.unary_unary(INFER)
        for _ in range(5000):
            async with asyncio.timeout(30):
                found[str(await rest_status(app, *rest_request(rng)))] += 1
                try:
                    await infer(grpc_message(rng))
                    found["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    found[error.code().name] += 1
    return found


async def rest_status(app: Any, method: str, path: str, headers: Any, *pieces: bytes) -> int:
    messages = [{"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    status: int = sent[0]["status"]
    return status


@contextlib.asynccontextmanager
async def grpc_channel(servicer: Any) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((servicer,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(5.0)


SECTIONS = {"http": http_section, "grpc": grpc_section, "copies": copies_section, "hostile": hostile_section}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION", help=", ".join(SECTIONS))
    names = parser.parse_args().sections or list(SECTIONS)
    passed = [SECTIONS[name]() for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
