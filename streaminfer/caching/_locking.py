"""Tables and mappings whose operations hold a lock, for uncompiled code and interpreters without a lock.

The thread that holds the lock can enter it again, because an ``__eq__`` of a key or a finalizer may use the same table.
What goes is noted while the lock is held (``keeping``), and told and freed when it is not.
"""

from __future__ import annotations

from typing import Any

from streaminfer._internal.locking import locked_subclass, under_lock

__all__ = ["MAPPING_OPERATIONS", "OPERATIONS", "guarded", "guarded_mapping"]

OPERATIONS = (
    "clear",
    "count_fresh",
    "counters",
    "discard",
    "drain",
    "erase_labeled",
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


def guarded(table: type[Any]) -> type[Any]:
    """Return a subclass of a table, each of whose operations holds a lock and then, without it, calls ``tell``."""
    locked = locked_subclass(table, OPERATIONS, after=_tell, not_after=("drain",))

    def prepare(self: Any, *arguments: Any) -> None:
        locked.__init__(self, *arguments)
        self.keeping = True

    def later(self: Any) -> None:
        """Not while the lock is held."""

    made: type[Any] = type("GuardedEdgeTable", (locked,), {"__slots__": (), "__init__": prepare, "_tell": later})
    return made


def guarded_mapping(mapping: type[Any]) -> type[Any]:
    """Return a subclass of a mapping, each of whose methods holds the lock of its guarded table."""
    operations = {
        name: under_lock(getattr(mapping, name), owner=_memory_of, after=_tell) for name in MAPPING_OPERATIONS
    }
    made: type[Any] = type("GuardedTableMapping", (mapping,), {"__slots__": (), **operations})
    return made


def _tell(table: Any) -> None:
    table.tell()


def _memory_of(mapping: Any) -> Any:
    return mapping._memory
