"""Numba's just-in-time compiler, the form of the kernels where none were compiled ahead of time.

Compiling the planner takes seconds of a core; loading what an earlier process compiled takes a tenth of one. Numba
keeps it beside the source, or where ``NUMBA_CACHE_DIR`` says, or in the user's cache folder, and compiles again when
the source has changed. Where it finds no folder to write to, each process compiles for itself.

Importing this module imports Numba.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compile_exports", "jit"]

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Make a kernel of a function: compiled for the types it is first called with, without the interpreter lock.

    Args:
        function: of numbers and NumPy arrays; what it calls is a kernel too.
    """
    compiled: Any
    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for a cache
        compiled = njit(nogil=True)(function)
    return cast("F", compiled)


def compile_exports(exports: Mapping[str, tuple[Any, str]]) -> None:
    """Compile kernels for their signatures, or load them from the cache, and for no other types from then on.

    Args:
        exports: the table of a kernels' module: name, kernel and signature. A kernel may stand in it several times.
    """
    for kernel, signature in exports.values():
        kernel.disable_compile(False)
        kernel.compile(signature)
    for kernel, _ in exports.values():
        kernel.disable_compile()
