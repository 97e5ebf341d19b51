"""y = x after the longest sleep_ms of the batch; the model's queue is short."""

import time
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        sleeps = [pb_utils.get_input_tensor_by_name(request, "sleep_ms").as_numpy().max() for request in requests]
        time.sleep(int(max(sleeps)) / 1000)
        echoes = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in echoes]
