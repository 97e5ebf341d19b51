"""Example of a server with `/metrics`."""

import asyncio
import runpy
from pathlib import Path

from servers.asgi_server import request

EXAMPLE = Path(__file__).parents[2] / "examples" / "metrics_server.py"


def test_metrics_server_counts_its_requests():
    """After one request, the metrics of the example count it."""
    app = runpy.run_path(str(EXAMPLE))["app"]
    told = []

    async def main():
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive():
            kind = next(messages)
            if kind == "lifespan.shutdown":
                told.append(await request(app, path="/21"))
                told.append(await request(app))
            return {"type": kind}

        async def send(message):
            told.append(message["type"])

        await app({"type": "lifespan"}, receive, send)

    asyncio.run(main())

    started, answer, (status, _, body), stopped = told
    assert (started, stopped) == ("lifespan.startup.complete", "lifespan.shutdown.complete")
    assert answer[2] == b"42.0"
    assert status == 200
    assert b'streaminfer_requests_total{service="doubles",layer="Telemetry",outcome="ok"} 1' in body


def test_metrics_server_writes_rules_and_dashboard(tmp_path, monkeypatch):
    """As a script, the example writes alert rules and a dashboard."""
    monkeypatch.chdir(tmp_path)

    runpy.run_path(str(EXAMPLE), run_name="__main__")

    assert "StreaminferBudgetBurn" in (tmp_path / "streaminfer.rules.yml").read_text(encoding="utf-8")
    assert '"title": "streaminfer"' in (tmp_path / "streaminfer.dashboard.json").read_text(encoding="utf-8")
