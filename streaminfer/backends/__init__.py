"""Backends, which run batches. Each backend is loaded at first use, with its dependencies."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.backends.cpu.backend import CpuBackend
    from streaminfer.backends.onnx.backend import OnnxBackend
    from streaminfer.backends.onnx.batch_folding import FoldedModel, fold_batch
    from streaminfer.backends.onnx.providers import cuda_provider, tensorrt_provider
    from streaminfer.backends.signature import TensorSpec
    from streaminfer.backends.statistics import BackendStatistics
    from streaminfer.backends.triton import SequenceLost, ServerStatistics, Tls, TritonBackend, TritonStatistics
    from streaminfer.backends.triton.repository.model_repository import write_model_repository

__all__ = [
    "BackendStatistics",
    "CpuBackend",
    "FoldedModel",
    "OnnxBackend",
    "SequenceLost",
    "ServerStatistics",
    "TensorSpec",
    "Tls",
    "TritonBackend",
    "TritonStatistics",
    "cuda_provider",
    "fold_batch",
    "tensorrt_provider",
    "write_model_repository",
]

_HOMES = {
    "backends.cpu.backend": ["CpuBackend"],
    "backends.onnx.backend": ["OnnxBackend"],
    "backends.onnx.batch_folding": ["FoldedModel", "fold_batch"],
    "backends.onnx.providers": ["cuda_provider", "tensorrt_provider"],
    "backends.signature": ["TensorSpec"],
    "backends.statistics": ["BackendStatistics"],
    "backends.triton": ["SequenceLost", "ServerStatistics", "Tls", "TritonBackend", "TritonStatistics"],
    "backends.triton.repository.model_repository": ["write_model_repository"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
