"""Conformance of our server to the protocol, beside three other servers: ``python benchmarks/run.py conformance``.

The same checks (`servers.conformance`) run against our server, Triton 2.51, MLServer 1.7 and KServe 0.21, all with the
same model. The benchmark writes the table to ``docs/reference/conformance.md``.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import uvicorn
from _lib.figures import Figure
from servers.conformance import CHECKS, Target, verdicts
from servers.http_server import free_port
from servers.kserve_server import KServe
from servers.mlp import mlp_answers
from servers.mlserver_server import MLServer
from servers.triton_server import TritonServer

import streaminfer as si

FAILED = Figure(
    "checks of the Open Inference Protocol by standard clients that our server fails", form="{:.0f}", at_most=0
)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
HEADER = """# Conformance to the Open Inference Protocol

`python benchmarks/run.py conformance` wrote this page.
It runs the same checks with `tritonclient` over HTTP and gRPC against each server, with the same model behind it.
A server that does not announce an extension is free to lack it.
The statuses of errors are this project's reading of the protocol.
The models behind MLServer and KServe are written by hand and ignore the names of inputs and outputs.
Triton's `timeout` holds for the time in a queue, and only where the model's configuration allows it.

"""


@contextlib.contextmanager
def our_server() -> Iterator[Target]:
    """Run our server with both protocols in a thread; yield its target."""
    http_port, grpc_port = free_port(), free_port()
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        example = {"x": np.zeros(8, np.float32)}
        model = si.CpuBackend(lambda inputs: {"y": mlp_answers(inputs["x"])}, example=example, executor="inline")
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=8), model)
        config = uvicorn.Config(
            si.serving.asgi_app({"mlp": stack}), port=http_port, log_level="critical", loop="asyncio"
        )
        web, server = uvicorn.Server(config), grpc.aio.server()
        server.add_generic_rpc_handlers((si.serving.grpc_servicer({"mlp": stack}),))
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        async with stack:
            await server.start()
            serving = asyncio.ensure_future(web.serve())
            while not web.started:
                await asyncio.sleep(0.01)
            ready.set()
            await done.wait()
            web.should_exit = True
            await serving
            await server.stop(5.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(60)
    try:
        yield Target(f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30)
        loop.close()


def main() -> int:
    tables: dict[str, dict[str, str]] = {}
    with our_server() as ours:
        tables["streaminfer"] = verdicts(ours)
    servers: dict[str, TritonServer | MLServer | KServe] = {
        "Triton 2.51": TritonServer(["mlp"]),
        "MLServer 1.7": MLServer(),
        "KServe 0.21": KServe(),
    }
    for name, made in servers.items():
        with made as server:
            tables[name] = verdicts(Target(server.http_url, server.grpc_url))
    lines = [f"| check | {' | '.join(tables)} |", "|---|" + "---|" * len(tables)]
    for check in CHECKS:
        lines.append(f"| {check} | {' | '.join('no' if found[check] else 'yes' for found in tables.values())} |")
        for name, found in tables.items():
            if found[check]:
                print(f"{name}: {check}: {found[check]}")
    counts = {name: sum(map(bool, found.values())) for name, found in tables.items()}
    PAGE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    failed = counts.pop("streaminfer")
    others = ", ".join(f"{name} {count}" for name, count in counts.items())
    return 0 if FAILED.report(failed, of=len(CHECKS), note=others) else 1


if __name__ == "__main__":
    raise SystemExit(main())
