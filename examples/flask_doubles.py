"""A stack inside Flask: ``gunicorn -c gunicorn_hooks.py flask_doubles:app`` in this folder, then

curl -d '{"x": [1, 2, 3, 4]}' -H 'content-type: application/json' localhost:8000/double
"""  # noqa: D415 - a command follows

from typing import Any

import flask
import numpy as np

import streaminfer as si

SLO_S = 1.0


def double(rows: Any) -> Any:
    """Double each row, in place of a model."""
    return rows * 2


model = si.CpuBackend(double, example=np.zeros(4, np.float32))
stack = si.Stack(si.Telemetry("doubles"), si.AdaptiveBatcher(max_batch_size=32, slo_s=SLO_S), model)
infer = stack.blocking()
app = flask.Flask(__name__)


@app.post("/double")
def answer() -> dict[str, Any]:
    """Double a row, by the deadline of the objective, a proxy or the client, whichever is tightest."""
    row = np.array(flask.request.get_json()["x"], np.float32)
    left_s = si.serving.read_timeout_s(flask.request.headers)
    return {"y": infer(row, timeout_s=SLO_S if left_s is None else min(left_s, SLO_S)).tolist()}


@app.get("/health/ready")
def ready() -> tuple[str, int]:
    """Respond to the readiness probe."""
    return "", 200 if stack.ready else 503


@app.errorhandler(si.StreamInferError)
def failed(error: si.StreamInferError) -> tuple[dict[str, str], int, dict[str, str]]:
    """Respond with the status of the error."""
    failure = si.serving.describe_failure(error)
    if failure.is_internal:
        app.logger.error("a request failed", exc_info=error)
    headers = {} if failure.retry_after_s is None else {"retry-after": str(failure.retry_after_s)}
    return {"error": failure.text}, failure.status, headers
