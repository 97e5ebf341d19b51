"""Tables and mappings whose operations hold a lock, for uncompiled code and interpreters without a lock.

The thread that holds the lock can enter it again, because an ``__eq__`` of a key or a finalizer may use the same table.
What goes is noted while the lock is held (``keeping``), and told and freed when it is not.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

__all__ = ["MAPPING_OPERATIONS", "OPERATIONS", "guarded", "guarded_mapping", "is_atomic"]

OPERATIONS = (
    "clear",
    "count_fresh",
    "counters",
    "discard",
    "drain",
    "erase_labelled",
    "erased_since",
    "expire",
    "expire_due",
    "get",
    "held",
    "lookup",
    "peek",
    "popitem",
    "setdefault",
    "snapshot",
    "store",
    "store_negative",
    "take",
)

MAPPING_OPERATIONS = (
    "__contains__",
    "__delitem__",
    "__getitem__",
    "__len__",
    "__setitem__",
    "clear",
    "get",
    "peek",
    "popitem",
    "setdefault",
)


def is_atomic(table: type[Any]) -> bool:
    """Return whether the interpreter lock makes its methods atomic: it is compiled, and there is such a lock."""
    locked: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    return locked and not isinstance(table.get, types.FunctionType)


def guarded(table: type[Any]) -> type[Any]:
    """Return a subclass of a table, each of whose operations holds a lock and then, without it, calls ``tell``."""

    def prepare(self: Any, *arguments: Any) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        table.__init__(self, *arguments)
        self.keeping = True

    def later(self: Any) -> None:
        """Not while the lock is held."""

    operations = {name: _under_lock(getattr(table, name), lambda self: self) for name in OPERATIONS}
    body = {"__slots__": ("_depth", "_lock"), "__init__": prepare, "_tell": later, **operations}
    guarded: type[Any] = type("GuardedEdgeTable", (table,), body)
    return guarded


def guarded_mapping(mapping: type[Any]) -> type[Any]:
    """Return a subclass of a mapping, each of whose methods holds the lock of its guarded table."""
    operations = {name: _under_lock(getattr(mapping, name), lambda self: self._memory) for name in MAPPING_OPERATIONS}
    guarded: type[Any] = type("GuardedTableMapping", (mapping,), {"__slots__": (), **operations})
    return guarded


def _under_lock(operation: Callable[..., Any], table_of: Callable[[Any], Any]) -> Callable[..., Any]:
    tells = operation.__name__ != "drain"

    @functools.wraps(operation)
    def locked(self: Any, *arguments: Any, **options: Any) -> Any:
        table = table_of(self)
        outermost = False
        try:
            with table._lock:
                outermost = table._depth == 0
                table._depth += 1
                try:
                    return operation(self, *arguments, **options)
                finally:
                    table._depth -= 1
        finally:
            if outermost and tells:
                table.tell()

    return locked
