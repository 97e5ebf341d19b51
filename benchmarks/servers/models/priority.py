"""Says in which place a request was run; runs take sleep_ms, so that others wait meanwhile."""

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # the server's own


class TritonPythonModel:
    def initialize(self, _args: dict[str, str]) -> None:
        self.count = 0

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "sleep_ms").as_numpy()) for request in requests]

    def answer(self, sleep_ms: Any) -> Any:
        time.sleep(int(sleep_ms.max()) / 1000)
        place = np.full((len(sleep_ms), 1), self.count, np.int64)
        self.count += 1
        return pb_utils.InferenceResponse([pb_utils.Tensor("place", place)])
