"""Serve a model over the Open Inference Protocol: ``uvicorn serve:app`` in this folder, then

curl -d '{"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}' \
    -H 'content-type: application/json' -H 'x-streaminfer-timeout-s: 0.05' localhost:8000/v2/models/doubles/infer
"""  # noqa: D415 - a command follows

from typing import Any

import numpy as np

import streaminfer as si


def double(rows: Any) -> Any:
    """Double each row, in place of a model."""
    return rows * 2


model = si.CpuBackend(double, example=np.zeros(4, np.float32))
stack = si.Stack(si.Telemetry("doubles"), si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1), model)
app = si.serving.asgi_app({"doubles": stack})
