"""Kernels compiled ahead of time: one extension module per processor variant, chosen at run time.

*Design*. The package's build (:mod:`~streaminfer._compiled_kernels.build`) compiles the tables ``EXPORTS`` of
:data:`MODULES` into an extension module for each of the :data:`VARIANTS`. A module describes itself: the digest of its
sources, and which arguments are arrays. A module with another digest than the installed sources is not used, so an
edited kernel never runs in its old form. Each module has all kernels, so a build that failed half-way leaves no
mixture.

*Invariants*. Loading imports only NumPy; Numba is not needed. A compiled function reads the memory of an array without
checking its dtype or strides, so :class:`CompiledKernels` checks both before each call, as Numba does.
"""

import functools
import hashlib
import importlib
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["MODULES", "VARIANTS", "CompiledKernels", "load", "load_variant", "source_digest", "source_of", "variants"]

MODULES = (
    "streaminfer.batching.planner.kernels",
    "streaminfer.batching.planner.bucket_kernels",
    "streaminfer.batching.planner.turn_kernels",
    "streaminfer.simulation.devices.optimum_kernels",
    "streaminfer.placement.solver.kernels",
    "streaminfer.streams.state.kernels",
)
"""Modules with a table ``EXPORTS``, which has the name, function and signature of each export."""

_IS_X86_64 = platform.machine().lower() in {"x86_64", "amd64"}

VARIANTS = {"x86_64_v3": "x86-64-v3", "baseline": "x86-64"} if _IS_X86_64 else {"baseline": ""}
"""LLVM processor names by extension module, the fastest first; empty: any processor of the architecture."""

X86_64_V3_FLAGS = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
"""Linux names of the features that x86-64-v3 adds to x86-64-v2, listed only if the system has enabled them."""

_PACKAGE = Path(__file__).parent.parent
_logger = logging.getLogger("streaminfer")

Function = Callable[..., Any]


class CompiledKernels:
    """Functions of one extension module. Thread-safe; the functions release the interpreter lock.

    Args:
        module: the extension module of a variant.

    Attributes:
        variant: the name of the variant.
        digest: digest of the sources from which it was compiled.
    """

    def __init__(self, module: ModuleType) -> None:
        description = json.loads(module.describe())
        self.variant = module.__name__.rpartition(".")[2]
        self.digest: str = description["digest"]
        self._module = module
        self._arrays: dict[str, list[tuple[int, str, int, bool]]] = description["arrays"]

    def unchecked(self, name: str) -> Function:
        """Return the function itself; arrays must be C-contiguous and have exactly the dtype of the signature."""
        function: Function = getattr(self._module, name)
        return function

    def checked(self, name: str) -> Function:
        """Return the function with a check of its arrays, which takes about 0.1 µs per array.

        Raises:
            TypeError: at the call, if an argument is not a C-contiguous array with the dtype and number of dimensions
                of the signature, or if it is read-only but the function writes to it.
        """
        function = self.unchecked(name)
        expected = [
            (position, np.dtype(dtype), dimensions, is_writable)
            for position, dtype, dimensions, is_writable in self._arrays[name]
        ]

        def checked(*arguments: Any) -> Any:
            for position, dtype, dimensions, is_writable in expected:
                array = arguments[position]
                if not (
                    type(array) is np.ndarray
                    and array.dtype == dtype
                    and array.ndim == dimensions
                    and (array.flags.carray if is_writable else array.flags.c_contiguous and array.flags.aligned)
                ):
                    raise _argument_error(name, position, array, dtype, dimensions, is_writable)
            return function(*arguments)

        return checked

    def __repr__(self) -> str:
        return f"CompiledKernels({self.variant})"


@functools.cache
def load() -> CompiledKernels | None:
    """Load the fastest variant that this processor can run.

    Returns:
        The functions; ``None`` if the package was built without them, the sources have changed since, or
        ``STREAMINFER_DISABLE_COMPILED=1`` selects the uncompiled form.
    """
    if os.environ.get("STREAMINFER_DISABLE_COMPILED") == "1":
        return None
    digest = source_digest()
    for variant in variants():
        kernels = load_variant(variant)
        if kernels is None:
            continue
        if digest in {kernels.digest, ""}:
            return kernels
        _logger.warning("kernels '%s' were compiled from other sources; build the package again to use them", variant)
    return None


def load_variant(variant: str) -> CompiledKernels | None:
    """Load one variant without checking its sources; ``None`` if it was not built."""
    name = f"{__name__}.{variant}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    return CompiledKernels(module)


def variants(flags: Sequence[str] | None = None) -> list[str]:
    """Return the names of the variants that a processor can run, the fastest first.

    Args:
        flags: the processor's flags in Linux; ``None``: those of this processor.
    """
    runs_v3 = frozenset(_processor_flags() if flags is None else flags) >= X86_64_V3_FLAGS
    return [variant for variant in VARIANTS if variant == "baseline" or runs_v3]


def source_of(module: str) -> Path:
    """Return the source file of one of the :data:`MODULES`."""
    return _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def source_digest() -> str:
    """Return the SHA-256 of the kernels' sources in hexadecimal; empty if the sources are not installed."""
    digest = hashlib.sha256()
    for module in MODULES:
        try:
            digest.update(source_of(module).read_bytes())
        except FileNotFoundError:
            return ""
    return digest.hexdigest()


def _processor_flags() -> list[str]:
    """Return the flags of the first processor; empty except on Linux, because other systems do not list them."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:  # generated while it is read
            return next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return []


def _argument_error(
    name: str, position: int, argument: Any, dtype: np.dtype[Any], dimensions: int, is_writable: bool
) -> TypeError:
    found = f"{argument.dtype} of shape {argument.shape}" if isinstance(argument, np.ndarray) else repr(argument)
    kind = "a writable, C-contiguous array" if is_writable else "a C-contiguous array"
    return TypeError(
        f"{name}: argument {position}: expected {kind} of {dtype} with {dimensions} dimension(s), got {found}"
    )
