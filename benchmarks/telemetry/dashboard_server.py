"""The server of the dashboard's benchmark: services whose statistics change, on a page or as whole JSON snapshots.

bench_dashboard.py runs it in a separate process: ``dashboard_server.py page|json SERVICES INTERVAL_S PORT``.
``/cpu`` returns the CPU seconds of the process so far, minus those of the traffic.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import uvicorn

import streaminfer as si
from streaminfer.testing import ScriptedBackend

RESULTS_PER_TURN = 20
SCRIPT = b"""
const source = new EventSource("events");
let updates = 0;
source.onmessage = (event) => { JSON.parse(event.data); updates += 1; document.body.dataset.updates = updates; };
"""
PAGE = b"<!doctype html><body></body><script>" + SCRIPT + b"</script>"


class Traffic:
    """Traffic that records latencies in its services as requests would; its CPU does not count as the page's."""

    def __init__(self, services: int) -> None:
        self.telemetries = [si.Telemetry(f"service-{n}", slo=si.SLO("fast", threshold_s=0.05)) for n in range(services)]
        self.stacks = [
            si.Stack(
                telemetry,
                si.EdgeCache(maxsize=100),
                si.ConcurrencyLimit(),
                si.AdaptiveBatcher(max_batch_size=32, slo_s=0.05),
                si.CircuitBreaker(),
                ScriptedBackend(),
            )
            for telemetry in self.telemetries
        ]
        self.random = np.random.default_rng(1)
        self.cpu_s = 0.0

    async def run(self, interval_s: float) -> None:
        while True:
            began_s = time.process_time()
            for telemetry in self.telemetries:
                for latency_s in self.random.lognormal(-4, 1, RESULTS_PER_TURN).tolist():
                    telemetry.begin()
                    telemetry._recorder.record(0, int(latency_s * 1e9))
            self.cpu_s += time.process_time() - began_s
            await asyncio.sleep(interval_s)


def json_app(traffic: Traffic, interval_s: float) -> Callable[..., Any]:
    """Return the baseline app, whose every update is all statistics of all stacks as JSON."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        streams = scope["path"].endswith("/events")
        kind = b"text/event-stream" if streams else b"text/html"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        while streams:
            whole = json.dumps([stack.statistics().to_dict() for stack in traffic.stacks])
            await send({"type": "http.response.body", "body": f"data: {whole}\n\n".encode(), "more_body": True})
            await asyncio.sleep(interval_s)
        await send({"type": "http.response.body", "body": PAGE})

    return app


async def main(kind: str, services: int, interval_s: float, port: int) -> None:
    traffic = Traffic(services)
    page = si.telemetry.dashboard(*traffic.stacks, interval_s=interval_s)
    inner = page if kind == "page" else json_app(traffic, interval_s)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/cpu":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(time.process_time() - traffic.cpu_s).encode()})
        else:
            await inner(scope, receive, send)

    feeding = asyncio.ensure_future(traffic.run(interval_s))
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
    await uvicorn.Server(config).serve()
    feeding.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
