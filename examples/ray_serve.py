"""Serve a model on Ray, a stack per replica: ``serve run ray_serve:app`` in this folder, then

curl -d '{"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}' \
    -H 'content-type: application/json' -H 'x-request-timeout-seconds: 0.5' localhost:8000/v2/models/doubles/infer

``python ray_serve.py`` calls it in this process instead, without a cluster.
"""  # noqa: D415 - a command follows

from typing import Any

import numpy as np
from ray import serve

import streaminfer as si


def double(rows: Any) -> Any:
    """Double each row, in place of a model."""
    return rows * 2


def make_stack() -> si.Stack:
    """Make the stack of one replica; runs in the replica."""
    objective = si.SLO("doubles", threshold_s=0.1)
    model = si.CpuBackend(double, example=np.zeros(4, np.float32))
    return si.Stack(si.Telemetry("doubles", slo=objective), si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1), model)


scaling = si.serving.Autoscaling(max_replicas=4, queue_delay_s=0.02)
deployment = si.serving.ray_deployment(make_stack, model="doubles", autoscaling=scaling)
app = deployment.bind()

if __name__ == "__main__":
    handle = serve.run(app, _local_testing_mode=True)
    response = handle.infer.remote(np.array([1, 2, 3, 4], np.float32), timeout_s=0.5)
    print(response.result().tolist())
