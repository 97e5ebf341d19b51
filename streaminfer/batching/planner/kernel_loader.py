"""Load the kernels of the planner: compiled ahead of time, or by Numba before requests arrive.

If the package was built with its kernels, loading them takes a millisecond and does not import Numba. Otherwise
:func:`prepare` makes a child process compile them into Numba's cache on disk, once on a machine, and loads them from
there. A process never compiles kernels while it serves requests.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from streaminfer import _compiled_kernels
from streaminfer._internal.error_log import Log
from streaminfer._internal.forking import new_lock
from streaminfer.errors import MissingExtra

__all__ = ["PlannerKernels", "check", "is_compiled_ahead", "is_ready", "load", "must_keep", "prepare"]

_CHILD = """
import sys
from streaminfer.batching.planner import kernel_loader
try:
    with kernel_loader.must_keep():
        kernel_loader.load()
except OSError as error:
    sys.exit(str(error))
"""
"""Code of the child process; it stops at the first kernel that it cannot store for other processes."""

_logger = Log("streaminfer")
_loading = new_lock()
_preparing = new_lock()
_loaded: "PlannerKernels | None" = None


class PlannerKernels(NamedTuple):
    """The kernels that the planner calls, as described in ``kernels``.

    Attributes:
        choose: chooses the batch for one free worker.
        drop_heads: chooses the largest batch after the requests that would be late in it.
        choose_bucket: chooses the bucket to serve first.
        choose_turn: chooses the model to serve first on a shared device, as described in ``turn_kernels``.
    """

    choose: Callable[..., tuple[int, int]]
    drop_heads: Callable[..., tuple[int, int]]
    choose_bucket: Callable[..., int]
    choose_turn: Callable[..., tuple[int, int, int]]


def is_compiled_ahead() -> bool:
    """Return whether the package has kernels compiled ahead of time for this processor."""
    return _compiled_kernels.load() is not None


def is_ready() -> bool:
    """Return whether :func:`load` returns without compiling anything."""
    return _loaded is not None or is_compiled_ahead()


def check() -> None:
    """Check that kernels are available, or Numba to compile them.

    Raises:
        MissingExtra: neither is available.
    """
    if not is_ready() and importlib.util.find_spec("numba") is None:
        raise MissingExtra(
            "the planner needs its kernels: this installation was built without them, and Numba, which would compile "
            "them at the start, is not installed: pip install numba, or install a wheel of streaminfer",
            name="numba",
        )


def load() -> PlannerKernels:
    """Load the planner's kernels in this process; thread-safe, immediate after the first call.

    If none were compiled ahead of time, Numba loads them from its cache or compiles them, which takes seconds: call
    :func:`prepare` before requests are served.

    Raises:
        MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
    """
    global _loaded  # noqa: PLW0603 - once per process
    if _loaded is not None:
        return _loaded
    with _loading:
        if _loaded is None:
            compiled = _compiled_kernels.load()
            if compiled is None:
                check()
                from streaminfer._internal.loading.numba_jit import compile_exports  # noqa: PLC0415 - imports Numba
                from streaminfer.batching.planner import bucket_kernels, kernels, turn_kernels  # noqa: PLC0415

                compile_exports(kernels.EXPORTS | bucket_kernels.EXPORTS | turn_kernels.EXPORTS)
                _loaded = PlannerKernels(
                    kernels.choose, kernels.drop_heads, bucket_kernels.choose_bucket, turn_kernels.choose_turn
                )
            else:
                _loaded = PlannerKernels(*(compiled.checked(name) for name in PlannerKernels._fields))
        return _loaded


@contextlib.contextmanager
def must_keep() -> Iterator[None]:
    """Raise ``OSError`` inside the block if Numba cannot store compiled kernels for later processes; not thread-safe.

    Raises:
        MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
    """
    if is_compiled_ahead():
        yield
        return
    check()
    from streaminfer._internal.loading import numba_jit  # noqa: PLC0415 - imports Numba

    with numba_jit.must_keep():
        yield


def prepare() -> None:
    """Load the kernels for the first decision; blocks for seconds if Numba has to compile them.

    Thread-safe. Call it off the event loop unless :func:`is_ready`.

    Raises:
        MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
    """
    check()
    with _preparing:  # stacks that start at the same time wait for one child
        if not is_ready():
            _compile_in_child()
        load()


def _compile_in_child() -> None:
    """Compile into Numba's cache by another process, so that no thread of this one holds the interpreter lock."""
    _logger.info("the kernels were not compiled ahead of time: a child process compiles them, once on a machine")
    began = time.perf_counter()
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and a constant
            [sys.executable, "-P", "-c", _CHILD],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            encoding="locale",
            errors="replace",  # bytes of a path, or of a native library
            check=False,
        )
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:  # an interpreter inside another program has no executable of its own
        problem = str(error)
    if problem:
        _logger.warning("the child process did not compile the kernels, so this one does: %s", problem)
    else:
        _logger.info("the kernels are compiled after %.1f s", time.perf_counter() - began)
