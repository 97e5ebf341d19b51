"""Kernels that run from their source as plain Python, for comparison with their compiled forms."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

__all__ = ["load_plain"]


def load_plain(kernels):
    """Return another module from the source of a module of kernels, with a decorator that compiles nothing."""
    stub = types.ModuleType("streaminfer._internal.loading.numba_jit")
    stub.jit = lambda function: function
    spec = importlib.util.spec_from_file_location(f"plain_{Path(kernels.__file__).stem}", Path(kernels.__file__))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "streaminfer._internal.loading.numba_jit", stub)
        spec.loader.exec_module(module)
    return module
