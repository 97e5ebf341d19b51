"""Runs of models that use bfloat16, the upper half of a float32; neither NumPy nor onnxruntime has such arrays.

Callers send and get float32, which can represent every bfloat16 value. Inputs are rounded to the nearest value, ties to
even, like casts in a model.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer.backends.signature import Signature

__all__ = ["from_bfloat16", "run_with_bfloat16", "to_bfloat16"]

_ELEMENT_TYPE = 16  # onnx.TensorProto.BFLOAT16
_ROUNDING = np.uint32(0x7FFF)
_QUIET_NAN = np.uint16(0x40)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of float32 values, rounded to bfloat16; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    with np.errstate(over="ignore"):  # overflows for NaN only
        rounded = ((bits + _ROUNDING + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), (bits >> 16).astype(np.uint16) | _QUIET_NAN, rounded)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the values of bfloat16 bits, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def run_with_bfloat16(
    session: Any, signature: Signature, feed: Mapping[str, npt.NDArray[Any]], options: Any
) -> list[Any]:
    """Run a session and return its outputs, in the order of the signature; they are new arrays.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        signature: the model's inputs and outputs, some of them bfloat16.
        feed: the inputs by name, C-contiguous.
        options: the ``onnxruntime.RunOptions``.
    """
    from onnxruntime import OrtValue  # noqa: PLC0415 - an extra, loaded by the backend's constructor

    bfloat16_inputs = {spec.name for spec in signature.inputs if spec.is_bfloat16}
    values = {
        name: OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(array), _ELEMENT_TYPE)
        if name in bfloat16_inputs
        else OrtValue.ortvalue_from_numpy(array)
        for name, array in feed.items()
    }
    outputs = session.run_with_ort_values(signature.output_names, values, options)
    return [
        _read(value) if spec.is_bfloat16 else value.numpy()
        for spec, value in zip(signature.outputs, outputs, strict=True)
    ]


def _read(value: Any) -> npt.NDArray[np.float32]:
    """Return the content of a bfloat16 value as float32; onnxruntime has copied it to this machine's memory."""
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=int))
    memory = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    return from_bfloat16(np.ctypeslib.as_array(memory).reshape(shape))
