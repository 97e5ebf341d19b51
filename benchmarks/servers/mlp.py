"""The model that the servers run: 8 inputs, one hidden layer, 4 outputs; the ONNX file and the expected outputs."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mlp_answers", "mlp_weights", "write_mlp"]

Floats = npt.NDArray[np.float32]


@functools.cache
def mlp_weights(hidden: int = 16) -> dict[str, Floats]:
    """Return the weights of the model, drawn with a fixed seed."""
    random = np.random.default_rng(20)
    shapes: dict[str, tuple[int, ...]] = {"w1": (8, hidden), "b1": (hidden,), "w2": (hidden, 4), "b2": (4,)}
    return {name: (random.normal(size=shape) / np.sqrt(shape[0])).astype("f") for name, shape in shapes.items()}


def write_mlp(path: Path, hidden: int = 16) -> None:
    """Write the ONNX file: x float32 [n, 8] → y float32 [n, 4]."""
    from onnx import TensorProto, helper, numpy_helper, save

    def value(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
        ],
        "mlp",
        [value("x", 8)],
        [value("y", 4)],
        [numpy_helper.from_array(array, name) for name, array in mlp_weights(hidden).items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def mlp_answers(x: Floats, hidden: int = 16) -> Floats:
    """Return the model's outputs [n, 4] for inputs [n, 8]."""
    weights = mlp_weights(hidden)
    inner = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    answers: Floats = inner @ weights["w2"] + weights["b2"]
    return answers
