"""Servers of several processes, each with a stack: uvicorn's workers with one tail, and Flask under gunicorn."""

import asyncio
import concurrent.futures
import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROW = {"x": [1.0, 2.0, 3.0, 4.0]}


class Server:
    """A server in a process of its own, on a free port."""

    def __init__(self, *command, **variables):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._command = [sys.executable, "-m", *(part.format(port=self.url.rpartition(":")[2]) for part in command)]
        self._variables = {**os.environ, "PYTHONPATH": str(ROOT), **variables}

    def __enter__(self):
        self.process = subprocess.Popen(self._command, cwd=EXAMPLES, env=self._variables)
        while not self.is_ready():
            assert self.process.poll() is None, "the server ended"
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(60) == 0
        finally:
            self.process.kill()

    def is_ready(self):
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=60.0).status_code == 200
        except httpx.TransportError:
            return False

    def post(self, **options):
        # a connection each, so that every worker gets some
        return httpx.post(f"{self.url}/double", timeout=60.0, **options)

    def scraped(self):
        """Return the number of responses of all workers, as Prometheus would read it."""
        page = httpx.get(f"{self.url}/metrics/", timeout=60.0).text
        count = 'streaminfer_workers_duration_seconds_count{service="doubles",layer="WorkerHistograms",of="latency"} '
        return next(int(line.removeprefix(count)) for line in page.splitlines() if line.startswith(count))

    def tail(self):
        return httpx.get(f"{self.url}/tail", timeout=60.0).json()


def test_workers_share_one_tail_including_dead_workers(tmp_path):
    """Each worker reports the tail latency of all workers, with the requests of a killed one."""
    command = ["uvicorn", "prefork:app", "--port", "{port}", "--workers", "2", "--log-level", "warning"]
    with Server(*command, TAIL_FOLDER=str(tmp_path)) as server:
        workers, sent = set(), 0
        while len(workers) < 2:
            workers.add(server.post(json=ROW).json()["worker"])
            sent += 1
        victim = min(workers)
        while (tail := server.tail())["worker"] == victim or tail["count"] < sent:
            assert tail["count"] <= sent
        os.kill(victim, signal.SIGKILL)
        while (reply := _try(server)) is None or reply.json()["worker"] in workers:
            sent += reply is not None
        while (tail := server.tail())["count"] < sent + 1:
            assert tail["count"] <= sent + 1
        while (scraped := server.scraped()) < sent + 1:  # the metrics of any worker
            pass

    assert scraped == sent + 1
    assert tail["count"] == sent + 1
    assert 0 < tail["p50_s"] <= tail["p99_s"]


def test_metrics_are_those_of_the_present_lifespan(tmp_path, monkeypatch):
    """The metrics are those of the current lifespan, even if a process has started and stopped the application before.

    Tests of an application do so repeatedly.
    """
    monkeypatch.setenv("TAIL_FOLDER", str(tmp_path))
    app = importlib.import_module("prefork").app

    async def scrape():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
        ):
            return (await client.get("/metrics/")).text

    assert ["duration_seconds_count" in asyncio.run(scrape()) for _ in range(2)] == [True, True]


def _try(server):
    """Send a request; return ``None`` if its connection was to the dead worker."""
    try:
        return server.post(json=ROW)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_flask_under_gunicorn_meets_caller_deadline(preload):
    """Flask under gunicorn responds by the deadline of its caller, with 504 if the deadline has passed."""
    command = ["gunicorn", "-c", "gunicorn_hooks.py", "-b", "127.0.0.1:{port}", "--log-level", "warning", *preload]
    with Server(*command, "flask_doubles:app") as server:
        with concurrent.futures.ThreadPoolExecutor(16) as callers:
            replies = list(callers.map(lambda _: server.post(json=ROW), range(32)))
        late = server.post(json=ROW, headers={"x-envoy-expected-rq-timeout-ms": "0.0001"})
        wrong = server.post(json={"x": [1.0]})
        unreadable = server.post(json=ROW, headers={"grpc-timeout": "soon"})

    assert {reply.status_code for reply in replies} == {200}
    assert replies[0].json() == {"y": [2.0, 4.0, 6.0, 8.0]}
    assert (late.status_code, wrong.status_code, unreadable.status_code) == (504, 400, 400)
