"""Backends: what answers a batch. Each one is loaded at first use, with whatever it needs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.backends._onnx_providers import cuda_provider, tensorrt_provider
    from streaminfer.backends._statistics import BackendStatistics
    from streaminfer.backends.cpu import CpuBackend
    from streaminfer.backends.onnx import OnnxBackend
    from streaminfer.backends.triton import SequenceLost, ServerTimes, Tls, TritonBackend, TritonStatistics
    from streaminfer.backends.triton_repository import write_model_repository

__all__ = [
    "BackendStatistics",
    "CpuBackend",
    "OnnxBackend",
    "SequenceLost",
    "ServerTimes",
    "Tls",
    "TritonBackend",
    "TritonStatistics",
    "cuda_provider",
    "tensorrt_provider",
    "write_model_repository",
]

_HOMES = {
    "BackendStatistics": "_statistics",
    "CpuBackend": "cpu",
    "OnnxBackend": "onnx",
    "SequenceLost": "triton",
    "ServerTimes": "triton",
    "Tls": "triton",
    "TritonBackend": "triton",
    "TritonStatistics": "triton",
    "cuda_provider": "_onnx_providers",
    "tensorrt_provider": "_onnx_providers",
    "write_model_repository": "triton_repository",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
