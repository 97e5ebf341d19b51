"""A lock around each operation of a state, where compiled code under the interpreter lock does not make it atomic."""

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

__all__ = ["atomic"]


def atomic(state: type, operations: tuple[str, ...]) -> type:
    """The state class itself where its methods cannot be interrupted, else a subclass that locks.

    Args:
        state: a class from a ``_cy`` module.
        operations: its methods, each of which is to be one step for other threads. The lock can be taken again by the
            thread that holds it, since an operation may end in a user's callback.

    Returns:
        ``state`` in the compiled build under the interpreter lock; otherwise a guarded subclass.
    """
    interruptible = isinstance(getattr(state, operations[0]), types.FunctionType)
    if not interruptible and getattr(sys, "_is_gil_enabled", lambda: True)():
        return state

    def under_lock(operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def locked(self: Any, *arguments: Any) -> Any:
            with self._lock:
                return operation(self, *arguments)

        return locked

    def prepare(self: Any, *arguments: Any) -> None:
        self._lock = threading.RLock()
        state.__init__(self, *arguments)  # type: ignore[misc]

    guarded = {name: under_lock(getattr(state, name)) for name in operations if hasattr(state, name)}
    return type(f"Guarded{state.__name__}", (state,), {"__slots__": ("_lock",), "__init__": prepare, **guarded})
