"""Running sum for each sequence."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


def scalar(request: Any, name: str) -> int:
    return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0])


class TritonPythonModel:
    def initialize(self, _args: dict[str, str]) -> None:
        self.sums: dict[int, int] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.step(request) for request in requests]

    def step(self, request: Any) -> Any:
        sequence = scalar(request, "CORRID")
        if scalar(request, "START"):
            self.sums[sequence] = 0
        if sequence not in self.sums:
            error = pb_utils.TritonError(f"sequence {sequence} was not started", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        self.sums[sequence] += scalar(request, "x")
        total = np.array([[self.sums[sequence]]], np.int64)
        if scalar(request, "END"):
            del self.sums[sequence]
        return pb_utils.InferenceResponse([pb_utils.Tensor("sum", total)])
