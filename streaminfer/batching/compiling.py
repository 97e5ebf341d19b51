"""Compiles the planner's kernels once a process, in a thread of its own, so that no decision ever waits for it."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["compile_kernels", "in_background", "kernels_if_ready"]

_compiling = threading.Lock()
_ready: ModuleType | None = None


def in_background(compile_: Callable[[], Any]) -> None:
    """Compiles in a thread that does not keep the process from ending."""
    threading.Thread(target=compile_, name="streaminfer-compile", daemon=True).start()


def compile_kernels() -> ModuleType:
    """Imports and compiles the planner's kernels, a second or two once a process; call it off the event loop.

    Thread-safe; returns at once when they are compiled.
    """
    global _ready  # noqa: PLW0603 - once a process
    with _compiling:
        if _ready is None:
            from streaminfer.batching import kernels  # noqa: PLC0415 - numba loads here and not before

            kernels.warm_up()
            _ready = kernels
        return _ready


def kernels_if_ready() -> ModuleType | None:
    """The compiled kernels; until they are ready, their compilation in the background is started once."""
    if _ready is None and not _compiling.locked():
        in_background(compile_kernels)
    return _ready
