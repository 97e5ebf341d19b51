"""y = 2x + 1; a request with a NaN is rejected."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def answer(self, x: Any) -> Any:
        if np.isnan(x).any():
            error = pb_utils.TritonError("x is NaN", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", (2 * x + 1).astype(np.float32))])
