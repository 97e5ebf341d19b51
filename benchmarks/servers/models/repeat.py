"""Decoupled model: responds with 0, 1, … n - 1, each after delay_ms; an error ends the responses at fail_at ≥ 0."""

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


def scalar(request: Any, name: str, missing: int) -> int:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return missing if tensor is None else int(tensor.as_numpy()[0])


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender()), daemon=True).start()

    def answer(self, request: Any, sender: Any) -> None:
        delay_s = scalar(request, "delay_ms", 0) / 1000
        fail_at = scalar(request, "fail_at", -1)
        for number in range(scalar(request, "n", 0)):
            time.sleep(delay_s)
            if sender.is_cancelled():
                break
            if number == fail_at:
                error = pb_utils.TritonError(f"failed at {number}", pb_utils.TritonError.INTERNAL)
                sender.send(pb_utils.InferenceResponse(error=error))
                break
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("token", np.array([number], np.int32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
