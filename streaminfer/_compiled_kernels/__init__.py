"""Kernels compiled ahead of time: one extension module for each kind of processor, chosen when it is loaded.

*Design*. The package's build (:mod:`~streaminfer._compiled_kernels.build`) compiles the tables ``EXPORTS`` of
:data:`MODULES` into an extension module for each of the :data:`VARIANTS`. A module describes itself: the digest of the
sources that it was compiled from, and which arguments are arrays. A module with another digest than the installed
sources is not used, so an edited kernel never runs in its old form. Each module has all kernels, so a build that
failed half-way leaves no mixture.

*Invariants*. Loading imports NumPy and nothing else; Numba is not needed. A compiled function reads the memory of an
array without looking at its dtype or strides, so :class:`CompiledKernels` checks both before each call, as Numba does.
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
"""Modules with a table ``EXPORTS``: the name of each export, its function and its signature."""

_IS_X86_64 = platform.machine().lower() in {"x86_64", "amd64"}

VARIANTS = {"x86_64_v3": "x86-64-v3", "baseline": "x86-64"} if _IS_X86_64 else {"baseline": ""}
"""Extension modules by name, the fastest first, and LLVM's name of the processor; empty: any of the architecture."""

X86_64_V3_FLAGS = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
"""Linux' names for what x86-64-v3 adds to x86-64-v2 and the system has enabled."""

_PACKAGE = Path(__file__).parent.parent
_logger = logging.getLogger("streaminfer")

Function = Callable[..., Any]


class CompiledKernels:
    """The functions of one extension module. Thread-safe; the functions release the interpreter lock.

    Args:
        module: a variant.

    Attributes:
        variant: the name of the variant.
        digest: digest of the sources that it was compiled from.
    """

    def __init__(self, module: ModuleType) -> None:
        description = json.loads(module.describe())
        self.variant = module.__name__.rpartition(".")[2]
        self.digest: str = description["digest"]
        self._module = module
        self._arrays: dict[str, list[tuple[int, str, int, bool]]] = description["arrays"]

    def unchecked(self, name: str) -> Function:
        """The function itself; arrays must be C-contiguous and have exactly the dtype of the signature."""
        function: Function = getattr(self._module, name)
        return function

    def checked(self, name: str) -> Function:
        """The function behind a check of its arrays, some 0.1 µs for each.

        Raises:
            TypeError: at the call, for an argument that is not a C-contiguous array of the dtype and number of
                dimensions of the signature, or that the function writes and that is read-only.
        """
        function = self.unchecked(name)
        expected = [
            (position, np.dtype(dtype), dimensions, written)
            for position, dtype, dimensions, written in self._arrays[name]
        ]

        def checked(*arguments: Any) -> Any:
            for position, dtype, dimensions, written in expected:
                array = arguments[position]
                if not (
                    type(array) is np.ndarray
                    and array.dtype == dtype
                    and array.ndim == dimensions
                    and (array.flags.carray if written else array.flags.c_contiguous and array.flags.aligned)
                ):
                    raise _misfit(name, position, array, dtype, dimensions, written)
            return function(*arguments)

        return checked

    def __repr__(self) -> str:
        return f"CompiledKernels({self.variant})"


@functools.cache
def load() -> CompiledKernels | None:
    """Load the fastest variant that this processor can run.

    Returns:
        ``None`` where the package was built without, where the sources have changed since, or where
        ``STREAMINFER_DISABLE_COMPILED=1`` asks for the uncompiled form.
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
    """Load one variant, whatever it was compiled from; ``None`` where it was not built."""
    name = f"{__name__}.{variant}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    return CompiledKernels(module)


def variants(flags: Sequence[str] | None = None) -> list[str]:
    """Name the variants that a processor can run, the fastest first.

    Args:
        flags: what Linux says that the processor has; ``None``: of this one.
    """
    runs_v3 = frozenset(_processor_flags() if flags is None else flags) >= X86_64_V3_FLAGS
    return [variant for variant in VARIANTS if variant == "baseline" or runs_v3]


def source_of(module: str) -> Path:
    """The file of one of the :data:`MODULES`."""
    return _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def source_digest() -> str:
    """SHA-256 of the sources of the kernels, in hexadecimal; empty where the sources are not installed."""
    digest = hashlib.sha256()
    for module in MODULES:
        try:
            digest.update(source_of(module).read_bytes())
        except FileNotFoundError:
            return ""
    return digest.hexdigest()


def _processor_flags() -> list[str]:
    """The flags of the first processor; none where the system does not tell them, which is anywhere but on Linux."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:  # made while it is read
            return next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return []


def _misfit(name: str, position: int, given: Any, dtype: np.dtype[Any], dimensions: int, written: bool) -> TypeError:
    shown = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else repr(given)
    kind = "a writable, C-contiguous array" if written else "a C-contiguous array"
    return TypeError(
        f"{name}: argument {position}: expected {kind} of {dtype} with {dimensions} dimension(s), got {shown}"
    )
