"""Position of a request in the order in which the model runs requests.

A run creates the file ``begun`` in the model's folder, and waits while the file ``held`` exists there.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.count = 0
        self.folder = Path(args["model_repository"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def answer(self, rows: Any) -> Any:
        (self.folder / "begun").touch()
        while (self.folder / "held").exists():
            time.sleep(0.001)
        place = np.full((len(rows), 1), self.count, np.int64)
        self.count += 1
        return pb_utils.InferenceResponse([pb_utils.Tensor("place", place)])
