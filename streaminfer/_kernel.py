"""`kernel`: how every Numba kernel of the package is compiled: without the interpreter lock, and kept on disk.

Compiling the planner takes seconds of a core; loading what an earlier process compiled takes a tenth of one. Numba
keeps it beside the source, or where ``NUMBA_CACHE_DIR`` says, or in the user's cache folder, and compiles again when
the source has changed. Where it finds no folder to write to, each process compiles for itself.

Importing this module imports Numba.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compiles a function for the types it is first called with.

    Args:
        function: of numbers and NumPy arrays; what it calls is a kernel too.
    """
    compiled: Any
    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for a cache
        compiled = njit(nogil=True)(function)
    return cast("F", compiled)
