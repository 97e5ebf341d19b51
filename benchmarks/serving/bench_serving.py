"""The server beside a bare echo of the same bytes: ``python benchmarks/run.py serving [SECTION ...]``.

http      requests per second of a no-op model over 64 connections that each send the next request after the response,
          over those of a bare ASGI echo on the same server (uvicorn); bar: at least 0.6×
grpc      the same over one channel of grpc.aio; bar: at least 0.7×
copies    100 bodies of 600 KB: peak memory of reading one, in bodies; bar: one copy (less than 1.3, with the buffer's
          spare room)
hostile   10,000 malformed or hostile requests, half over REST and half over gRPC; bar: an allowed status for each

Server and clients share the cores. Rounds alternate; medians and the spread of the ratio are printed.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvicorn
from _lib.hostile_bodies import ALLOWED_GRPC, ALLOWED_REST, grpc_message, rest_request
from tritonclient.grpc import service_pb2 as pb

import streaminfer as si
from streaminfer.serving.infer_request import parse_body

HTTP_BAR, GRPC_BAR, COPIES_BAR = 0.6, 0.7, 1.3
CONNECTIONS, ROUNDS, ROUND_S = 64, 7, 1.5
PATH, INFER = "/v2/models/m/infer", "/inference.GRPCInferenceService/ModelInfer"
Measure = Callable[[int], Coroutine[Any, Any, tuple[int, float]]]
X = np.zeros((1, 16), np.float32)
BODY_BYTES = 600_000


def no_op_stack() -> si.Stack:
    model = si.CpuBackend(_same, example=X[0], executor="inline", copy_outputs=False)
    return si.Stack(si.AdaptiveBatcher(max_batch_size=64), model)


def _same(rows: Any) -> Any:
    return rows


def http_body(array: Any) -> tuple[bytes, int]:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": array.shape}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + array.tobytes(), len(head)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and sends it back."""
    if scope["type"] != "http":
        raise RuntimeError(scope["type"])
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run_http(ours: bool, port: int) -> None:
    app = si.serving.asgi_app({"m": no_op_stack()}) if ours else echo
    uvicorn.run(app, port=port, log_level="critical", lifespan="on" if ours else "off", loop="asyncio")


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
    """A server in a process of its own; gives its port and process id."""
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
        yield port, process.pid or 0
    finally:
        process.kill()
        process.join()


async def http_rate(port: int) -> tuple[int, float]:
    body, length = http_body(X)
    message = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {length}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    async def client(ends_s: float) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while time.perf_counter() < ends_s:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head)
            size = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
            answered += 1
        writer.close()
        await writer.wait_closed()
        return answered

    return await count(client)


async def grpc_rate(port: int) -> tuple[int, float]:
    call = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    call.inputs.add(name="inputs", datatype="FP32", shape=X.shape)
    message = call.SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(INFER)

        async def client(ends_s: float) -> int:
            answered = 0
            while time.perf_counter() < ends_s:
                await ask(message)
                answered += 1
            return answered

        return await count(client)


async def count(client: Callable[[float], Awaitable[int]]) -> tuple[int, float]:
    """Requests of all connections together, and the seconds that they took."""
    started_s = time.perf_counter()
    answered = await asyncio.gather(*(client(started_s + ROUND_S) for _ in range(CONNECTIONS)))
    return sum(answered), time.perf_counter() - started_s


def cpu_s(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def beside_echo(name: str, run: Callable[[bool, int], None], measure: Measure, bar: float) -> bool:
    with in_process(run, ours=True) as ours, in_process(run, ours=False) as bare:
        rates: dict[tuple[int, int], list[float]] = {ours: [], bare: []}
        costs: dict[tuple[int, int], list[float]] = {ours: [], bare: []}
        for number in range(ROUNDS + 1):
            for server in (ours, bare) if number % 2 else (bare, ours):
                port, pid = server
                before_s = cpu_s(pid)
                answered, took_s = asyncio.run(measure(port))
                if number:  # the first round warms up
                    rates[server].append(answered / took_s)
                    costs[server].append((cpu_s(pid) - before_s) / answered * 1e6)
    ratios = [one / other for one, other in zip(rates[ours], rates[bare], strict=True)]
    ratio = statistics.median(ratios)
    met = ratio >= bar
    (rate, bare_rate), (cost, bare_cost) = (
        [statistics.median(found[server]) for server in (ours, bare)] for found in (rates, costs)
    )
    print(f"{name}: {rate:,.0f}/s, echo {bare_rate:,.0f}/s: {ratio:.2f}× ({min(ratios):.2f} to {max(ratios):.2f}; "
          f"bar ≥ {bar}×: {'met' if met else 'MISSED'})")  # fmt: skip
    print(f"{'':>6}CPU of the server per request: {cost:.0f} µs, echo {bare_cost:.0f} µs")
    return met


def http_section() -> bool:
    return beside_echo(f"HTTP, {CONNECTIONS} connections", run_http, http_rate, HTTP_BAR)


def grpc_section() -> bool:
    return beside_echo(f"gRPC, {CONNECTIONS} callers", run_grpc, grpc_rate, GRPC_BAR)


def copies_section() -> bool:
    body, length = http_body(np.zeros((1, BODY_BYTES // 4), np.float32))
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    headers = {"inference-header-content-length": str(length), "content-length": str(len(body))}
    app = si.serving.asgi_app({"m": no_op_stack()})

    async def read_one() -> float:
        messages = [{"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1]} for chunk in chunks]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        view, head = await app._read(headers, receive)
        call = parse_body(view, head, None, si.serving.Limits())
        peak = tracemalloc.get_traced_memory()[1] - before
        if call.arrays["inputs"].flags.owndata:
            raise RuntimeError("the tensor was copied")
        return peak / len(body)

    async def read_all() -> list[float]:
        return [await read_one() for _ in range(100)]

    tracemalloc.start()
    peaks = asyncio.run(read_all())
    tracemalloc.stop()
    met = max(peaks) < COPIES_BAR
    print(f"100 bodies of {len(body):,} bytes: {max(peaks):.2f} bodies allocated at most, tensors are views "
          f"(bar < {COPIES_BAR}: {'met' if met else 'MISSED'})")  # fmt: skip
    return met


def hostile_section() -> bool:
    found = asyncio.run(hostile_statuses())
    allowed = ALLOWED_GRPC | {str(status) for status in ALLOWED_REST}
    met = found.keys() <= allowed and sum(found.values()) == 10_000
    print(
        f"10,000 hostile requests: {dict(sorted(found.items()))} (bar: allowed statuses: {'met' if met else 'MISSED'})"
    )
    return met


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


async def rest_status(app: Any, method: str, path: str, headers: Any, body: bytes) -> int:
    messages = [{"type": "http.request", "body": body, "more_body": False}]
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
