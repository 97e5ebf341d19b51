"""Numba's just-in-time compiler, for kernels that were not compiled ahead of time.

Compiling the planner takes seconds of CPU time; loading the code that an earlier process compiled takes a tenth of a
second. Numba stores compiled code beside the source, in ``NUMBA_CACHE_DIR`` or in the user's cache folder, and compiles
again when the source has changed. Numba looks only into the first of these folders that it can write to. This module
also loads kernels from the others, because an image is often built by another user than the one who serves, and its
root file system may be read-only. If no folder is writable, each process compiles for itself.

Importing this module imports Numba.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache

__all__ = ["compile_exports", "jit", "must_keep"]

F = TypeVar("F", bound=Callable[..., Any])

_must_keep = False


def jit(function: F) -> F:
    """Compile a function as a kernel for the types of its first call; it runs without the interpreter lock.

    Args:
        function: a function of numbers and NumPy arrays; the functions that it calls must be kernels too.
    """
    compiled: Any = njit(nogil=True)(function)
    compiled._cache = _KernelCache(function)
    return cast("F", compiled)


def compile_exports(exports: Mapping[str, tuple[Any, str]]) -> None:
    """Compile kernels for their signatures, or load them from the cache; afterwards they take no other types.

    Args:
        exports: the export table of a kernel module: name, kernel and signature. A kernel may occur several times.

    Raises:
        OSError: the compiled code could not be stored, within :func:`must_keep`.
    """
    for kernel, signature in exports.values():
        kernel.disable_compile(False)
        kernel.compile(signature)
    for kernel, _ in exports.values():
        kernel.disable_compile()


@contextlib.contextmanager
def must_keep() -> Iterator[None]:
    """Raise ``OSError`` inside the block if compiled code cannot be stored for other processes; not thread-safe."""
    global _must_keep  # noqa: PLW0603 - kernels are made when their modules are imported
    _must_keep = True
    try:
        yield
    finally:
        _must_keep = False


class _KernelCache:
    """Cache of one kernel, with the interface that Numba's dispatcher calls.

    Args:
        function: the function of the kernel.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._writable: Any = None
        with contextlib.suppress(RuntimeError):  # no writable folder
            self._writable = FunctionCache(function)  # type: ignore[no-untyped-call]
        self._others = [other for other in _readable(function) if other.cache_path != self.cache_path]

    @property
    def cache_path(self) -> str | None:
        """Folder where compiled code is stored; ``None``: no folder is writable."""
        return None if self._writable is None else self._writable.cache_path

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the code for a signature, or ``None`` if no folder has it."""
        for function_cache in [self._writable, *self._others] if self._writable else self._others:
            with contextlib.suppress(OSError):  # the folder of another user may be unreadable
                code = function_cache.load_overload(signature, target)
                if code is not None:
                    return code
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Store the code for a signature; if that fails, for example on a full disk, the kernel still works."""
        try:
            if self._writable is None:
                raise PermissionError(
                    "Numba finds no folder in which to keep what it compiles: set NUMBA_CACHE_DIR to one that this "
                    "user can write to"
                )
            self._writable.save_overload(signature, compiled)
        except OSError:
            if _must_keep:
                raise


def _readable(function: Callable[..., Any]) -> Iterator[Any]:
    """Return the caches of a function in the folders that exist, whether or not this process can write to them."""
    for kind in _readers():
        with contextlib.suppress(RuntimeError):  # the folder does not exist
            yield kind(function)


@cache
def _readers() -> list[Any]:
    """Return Numba's caches, one for each folder that it knows, without requiring that the folder is writable."""

    def ensure_cache_path(locator: Any) -> None:
        if not Path(locator.get_cache_path()).is_dir():
            raise FileNotFoundError(locator.get_cache_path())

    readers = []
    for locator in CompileResultCacheImpl._locator_classes:
        lenient = type(locator.__name__, (locator,), {"ensure_cache_path": ensure_cache_path})
        places = type("Places", (CompileResultCacheImpl,), {"_locator_classes": [lenient]})
        readers.append(type("Reader", (FunctionCache,), {"_impl_class": places}))
    return readers
