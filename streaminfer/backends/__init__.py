"""Backends: what answers a batch. Each one is loaded at first use, with whatever it needs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.backends._statistics import BackendStatistics
    from streaminfer.backends.cpu import CpuBackend
    from streaminfer.backends.onnx import OnnxBackend

__all__ = ["BackendStatistics", "CpuBackend", "OnnxBackend"]

_HOMES = {"BackendStatistics": "_statistics", "CpuBackend": "cpu", "OnnxBackend": "onnx"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
