"""A server with `/metrics`: a model behind a stack, scraped by Prometheus, with its alert rules and dashboard in files.

Start it with any ASGI server: ``uvicorn examples.metrics_server:app``. ``python examples/metrics_server.py`` writes
``streaminfer.rules.yml`` and ``streaminfer.dashboard.json`` to the current folder.
"""

import json
from pathlib import Path
from typing import Any

import streaminfer as si

slo = si.SLO("doubles", threshold_s=0.050, objective=0.99)


def double(rows: Any) -> Any:
    """Double each row, in place of a model."""
    return rows * 2


stack = si.Stack(si.Telemetry("doubles", slo=slo), si.AdaptiveBatcher(max_batch_size=32), si.CpuBackend(double))
metrics = si.telemetry.metrics_app(stack)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Respond to ``/metrics``, and double the number in any other path: ``/21`` gives 42."""
    if scope["type"] == "lifespan":
        for step, change in (("startup", stack.start), ("shutdown", stack.stop)):
            await receive()
            await change()
            await send({"type": f"lifespan.{step}.complete"})
    elif scope["path"] == "/metrics":
        await metrics(scope, receive, send)
    else:
        body = json.dumps(float(await stack(float(scope["path"].lstrip("/"))))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    Path("streaminfer.rules.yml").write_text(si.telemetry.alert_rules(slo), encoding="utf-8")
    Path("streaminfer.dashboard.json").write_text(si.telemetry.grafana_dashboard(), encoding="utf-8")
