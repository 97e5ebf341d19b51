"""An ONNX model of one input for rows, in one thread: the same code in our server, in Triton's and in MLServer's.

A recurrent model (silero) starts from a state of zeros at each request.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

try:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
except ImportError:
    pb_utils = None
try:
    from mlserver import MLModel  # type: ignore[import-not-found]
    from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
    from mlserver.types import InferenceResponse  # type: ignore[import-not-found]
    from mlserver.utils import get_model_uri  # type: ignore[import-not-found]
except ImportError:
    MLModel = object

__all__ = ["load"]


def load(path: str | Path) -> Callable[[Any], Any]:
    """Return a function of an array of rows that returns the model's first output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    output = session.get_outputs()[0].name

    def run(rows: Any) -> Any:
        feeds = {names[0]: rows}
        if "state" in names:
            feeds |= {"state": np.zeros((2, len(rows), 128), np.float32), "sr": np.array(16_000)}
        return session.run([output], feeds)[0]

    return run


class TritonPythonModel:
    """For Triton's python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        self.run = load(Path(args["model_repository"], args["model_version"], "model.onnx"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer what the server hands over at once in one run."""
        parts = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = self.run(parts[0] if len(parts) == 1 else np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", rows)]) for rows in np.split(answers, ends)]


class Rows(MLModel):  # type: ignore[misc]
    """For MLServer."""

    async def load(self) -> bool:
        """Load the model."""
        self.run = load(await get_model_uri(self._settings))
        return True

    async def predict(self, payload: Any) -> Any:
        """Answer a request, which MLServer may have put together of several."""
        y = self.run(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output("y", y)]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
