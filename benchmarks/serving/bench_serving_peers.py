"""A no-op model over HTTP beside BentoML, LitServe, mosec and Ray Serve: ``python benchmarks/run.py serving_peers``.

Requests per second through 64 connections of wrk, which shares the cores with the server. Each server gets 16 numbers
in its cheapest format: ours binary tensors, and JSON for comparison; mosec bytes; LitServe, BentoML and Ray JSON. Ray
Serve runs with its own proxy, and with its faster data plane, HAProxy. Servers take turns in each round; the figures
are ratios of ours under granian to each peer.
"""

import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from _lib.figures import Figure
from _lib.http_load import Wrk
from servers.http_server import HttpServer, asgi_server, cpu_s

CONNECTIONS, ROUNDS, ROUND_S = 64, 5, 2.0
PEERS = Path(__file__).parents[1] / "peers"
NUMBERS = np.zeros(16, np.float32)
OVER_BENTOML = Figure("requests per second of a no-op model over HTTP, beside BentoML", over="BentoML", at_least=5.0)
OVER_LITSERVE = Figure("requests per second of a no-op model over HTTP, beside LitServe", over="LitServe", at_least=5.0)
OVER_MOSEC = Figure("requests per second of a no-op model over HTTP, beside mosec", over="mosec", at_least=0.35)
OVER_RAY = Figure(
    "requests per second of a no-op model over HTTP, beside Ray Serve",
    over="Ray Serve with its own proxy",
    at_least=5.0,
)
OVER_HAPROXY = Figure(
    "requests per second of a no-op model over HTTP, beside Ray Serve's HAProxy",
    over="Ray Serve with HAProxy",
    at_least=1.0,
)
FIGURES = {
    "BentoML": OVER_BENTOML,
    "LitServe": OVER_LITSERVE,
    "mosec": OVER_MOSEC,
    "Ray Serve": OVER_RAY,
    "Ray Serve, HAProxy": OVER_HAPROXY,
}
RAY = {
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_worker_niceness": "0",  # Ray's default is 15, with which wrk would take the CPU of Ray
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # five seconds are too few on a busy machine
}
INFER = "/v2/models/m/infer"
JSON = {"Content-Type": "application/json"}


def servers() -> dict[str, HttpServer]:
    """Return all servers, each with the request that it gets; ours come first."""
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, 16]}
    binary = {"inputs": [tensor | {"parameters": {"binary_data_size": 64}}], "parameters": {"binary_data_output": True}}
    head = json.dumps(binary).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    listed = json.dumps({"inputs": [tensor | {"data": NUMBERS.tolist()}]}).encode()
    row = json.dumps({"inputs": NUMBERS.tolist()}).encode()
    rows = json.dumps({"inputs": [NUMBERS.tolist()]}).encode()
    bento = ("-m", "bentoml", "serve", "http_bentoml:NoOp", "--working-dir", str(PEERS), "--host", "127.0.0.1")
    mosec = (str(PEERS / "http_mosec.py"), "--address", "127.0.0.1", "--log-level", "error", "--port", "{port}")

    def ray(**variables: str) -> HttpServer:
        arguments = (str(PEERS / "http_ray.py"), "{port}")
        return HttpServer(arguments, "/", row, JSON, variables=RAY | variables, installed_in="ray")

    return {
        "granian": asgi_server("granian", "ours", INFER, head + NUMBERS.tobytes(), length),
        "granian, JSON": asgi_server("granian", "ours", INFER, listed, JSON),
        "uvicorn": asgi_server("uvicorn", "ours", INFER, head + NUMBERS.tobytes(), length),
        "BentoML": HttpServer((*bento, "--port", "{port}"), "/infer", rows, JSON),
        "LitServe": HttpServer((str(PEERS / "http_litserve.py"), "{port}"), "/predict", row, JSON),
        "mosec": HttpServer(mosec, "/inference", NUMBERS.tobytes(), {}),
        "Ray Serve": ray(),
        "Ray Serve, HAProxy": ray(RAY_SERVE_ENABLE_HA_PROXY="1"),
    }


def main() -> int:
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        loads = {}
        for name, server in servers().items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            loads[name] = (stack.enter_context(server), Wrk(folder, server.body, server.headers, CONNECTIONS))
            print(f"{name} answers after {server.start_s:.1f} s", file=sys.stderr, flush=True)
        for number in range(ROUNDS + 1):
            for name, (server, load) in loads.items():
                before_s = cpu_s(server.pid)
                answered, took_s = load.run(server.port, server.path, ROUND_S)
                if number:  # the first round warms up
                    rates.setdefault(name, []).append(answered / took_s)
                    costs.setdefault(name, []).append((cpu_s(server.pid) - before_s) / answered * 1e6)
    met = True
    for name, found in rates.items():
        ratios = [ours / one for ours, one in zip(rates["granian"], found, strict=True)]
        print(f"{name}: {statistics.median(found):,.0f}/s, {statistics.median(costs[name]):.0f} µs of CPU; ours with "
              f"granian over it {statistics.median(ratios):.2f}×")  # fmt: skip
        if name in FIGURES:
            met &= FIGURES[name].report(ratios)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
