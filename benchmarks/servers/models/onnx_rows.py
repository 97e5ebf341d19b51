"""ONNX model of one input for rows, in one thread, with the same code for Triton's server and for MLServer."""

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


def load(path: str | Path) -> tuple[str, str, Callable[[Any], Any]]:
    """Return the names of the model's input and first output, and a function from the input to the output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return name, output, lambda rows: session.run([output], {name: rows})[0]


class TritonPythonModel:
    """Model for Triton's python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.input, self.output, self.run = load(path)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the model once for all requests of a call from the server."""
        parts = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        answers = self.run(parts[0] if len(parts) == 1 else np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self.output, rows)]) for rows in np.split(answers, ends)]


class Rows(MLModel):  # type: ignore[misc]
    """Model for MLServer."""

    async def load(self) -> bool:
        """Load the model."""
        _, self.output, self.run = load(await get_model_uri(self._settings))
        return True

    async def predict(self, payload: Any) -> Any:
        """Respond to a request, which MLServer may have combined from several."""
        rows = self.run(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output(self.output, rows)]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
