"""Numba's just-in-time compiler, the form of the kernels where none were compiled ahead of time.

Compiling the planner takes seconds of a core; loading what an earlier process compiled takes a tenth of one. Numba
keeps it beside the source, or where ``NUMBA_CACHE_DIR`` says, or in the user's cache folder, and compiles again when
the source has changed. It looks only into the first of these folders that it can write to; a kernel is also loaded from
the others, because an image is built by another user than the one who serves, and its root may be read-only. Where
there is no folder to write to, each process compiles for itself.

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
    """Make a kernel of a function: compiled for the types it is first called with, without the interpreter lock.

    Args:
        function: of numbers and NumPy arrays; what it calls is a kernel too.
    """
    compiled: Any = njit(nogil=True)(function)
    compiled._cache = _KernelCache(function)
    return cast("F", compiled)


def compile_exports(exports: Mapping[str, tuple[Any, str]]) -> None:
    """Compile kernels for their signatures, or load them from the cache, and for no other types from then on.

    Args:
        exports: the table of a kernels' module: name, kernel and signature. A kernel may stand in it several times.

    Raises:
        OSError: what was compiled could not be kept, within :func:`must_keep`.
    """
    for kernel, signature in exports.values():
        kernel.disable_compile(False)
        kernel.compile(signature)
    for kernel, _ in exports.values():
        kernel.disable_compile()


@contextlib.contextmanager
def must_keep() -> Iterator[None]:
    """Raise ``OSError`` inside where a kernel would be compiled that no other process finds; not thread-safe."""
    global _must_keep  # noqa: PLW0603 - kernels are made when their modules are imported
    _must_keep = True
    try:
        yield
    finally:
        _must_keep = False


class _KernelCache:
    """The cache of one kernel, as Numba's dispatcher calls it.

    Args:
        function: of the kernel.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._own: Any = None
        with contextlib.suppress(RuntimeError):  # no folder to write to
            self._own = FunctionCache(function)  # type: ignore[no-untyped-call]
        self._others = [other for other in _readable(function) if other.cache_path != self.cache_path]

    @property
    def cache_path(self) -> str | None:
        """The folder where compiled code is kept."""
        return None if self._own is None else self._own.cache_path

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the code for a signature; ``None``: it is in no folder."""
        for kept in [self._own, *self._others] if self._own else self._others:
            with contextlib.suppress(OSError):  # another user may keep it private
                found = kept.load_overload(signature, target)
                if found is not None:
                    return found
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep the code for a signature, if that is possible: a full disk does not keep it from serving."""
        try:
            if self._own is None:
                raise PermissionError(
                    "Numba finds no folder in which to keep what it compiles: set NUMBA_CACHE_DIR to one that this "
                    "user can write to"
                )
            self._own.save_overload(signature, compiled)
        except OSError:
            if _must_keep:
                raise


def _readable(function: Callable[..., Any]) -> Iterator[Any]:
    """Return the caches of a function in the folders that exist, whether or not this process can write to them."""
    for kind in _readers():
        with contextlib.suppress(RuntimeError):  # there is no such folder
            yield kind(function)


@cache
def _readers() -> list[Any]:
    """Numba's caches, one for each place that it knows, without the demand that the folder is writable."""

    def ensure_cache_path(locator: Any) -> None:
        if not Path(locator.get_cache_path()).is_dir():
            raise FileNotFoundError(locator.get_cache_path())

    readers = []
    for locator in CompileResultCacheImpl._locator_classes:
        lenient = type(locator.__name__, (locator,), {"ensure_cache_path": ensure_cache_path})
        places = type("Places", (CompileResultCacheImpl,), {"_locator_classes": [lenient]})
        readers.append(type("Reader", (FunctionCache,), {"_impl_class": places}))
    return readers
