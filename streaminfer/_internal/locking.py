"""A lock around each method of a state machine that is not compiled."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from streaminfer._internal.forking import new_reentrant_lock

__all__ = ["is_atomic", "locked_subclass", "public_methods", "thread_safe", "under_lock"]


def thread_safe(state: type[Any], operations: Iterable[str] = ()) -> type[Any]:
    """Return ``state`` if its methods cannot be interrupted, otherwise a subclass that holds a lock in each of them.

    Args:
        state: a class of a ``_cy`` module.
        operations: names of its methods that must be atomic for other threads; empty: the public ones.
    """
    operations = tuple(operations) or public_methods(state)
    return state if is_atomic(state, operations[0]) else locked_subclass(state, operations)


def public_methods(state: type[Any]) -> tuple[str, ...]:
    """Return the names of the methods that a class defines for others."""
    return tuple(name for name, it in vars(state).items() if callable(it) and not name.startswith("_"))


def is_atomic(state: type[Any], operation: str) -> bool:
    """Return whether a method cannot be interrupted: it is compiled, and runs under the interpreter lock."""
    has_interpreter_lock: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    return has_interpreter_lock and not isinstance(getattr(state, operation), types.FunctionType)


def locked_subclass(
    state: type[Any],
    operations: Iterable[str],
    *,
    after: Callable[[Any], object] | None = None,
    not_after: Iterable[str] = (),
) -> type[Any]:
    """Return a subclass whose operations hold one lock per object.

    The lock is reentrant, because an operation can call a user's function, or trigger the garbage collection of a
    generator, and either may call another operation.

    Args:
        state: the class.
        operations: names of the methods that hold the lock; names that the class lacks are skipped.
        after: called with the object, without the lock, when the outermost operation has ended.
        not_after: operations that do not call ``after``.
    """

    def prepare(self: Any, *arguments: Any, **options: Any) -> None:
        self._lock = new_reentrant_lock()
        self._depth = 0
        state.__init__(self, *arguments, **options)

    body: dict[str, Any] = {"__slots__": ("_depth", "_lock"), "__init__": prepare}
    excluded = frozenset(not_after)
    for name in operations:
        if hasattr(state, name):
            body[name] = under_lock(getattr(state, name), after=None if name in excluded else after)
    return type(f"Locked{state.__name__}", (state,), body)


def under_lock(
    operation: Callable[..., Any],
    *,
    owner: Callable[[Any], Any] = lambda self: self,
    after: Callable[[Any], object] | None = None,
) -> Callable[..., Any]:
    """Return a method that holds the lock of an object of a :func:`locked_subclass`.

    Args:
        operation: the method.
        owner: returns the object with the lock, given the object whose method this is.
        after: called with the object that has the lock, without the lock, when the outermost operation has ended.
    """

    @functools.wraps(operation)
    def locked(self: Any, *arguments: Any, **options: Any) -> Any:
        lock_owner = owner(self)
        is_outermost = False
        try:
            with lock_owner._lock:
                is_outermost = lock_owner._depth == 0
                lock_owner._depth += 1
                try:
                    return operation(self, *arguments, **options)
                finally:
                    lock_owner._depth -= 1
        finally:
            if is_outermost and after is not None:
                after(lock_owner)

    return locked
