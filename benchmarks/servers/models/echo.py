"""Echo of the types that need care on the wire: each input NAME comes back as NAME_out."""

from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # module of the server


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(f"{tensor.name()}_out", tensor.as_numpy()) for tensor in request.inputs()]
            )
            for request in requests
        ]
