"""Lock around each operation of a table or mapping, for uncompiled code and interpreters without a global lock.

The thread that holds the lock can take it again, because an ``__eq__`` of a key or a finalizer may use the same table.
While the lock is held, the table notes the entries that leave; after its release, they are delivered to listeners and
freed. The user of a table therefore sets ``keeping``.
"""

from operator import attrgetter, methodcaller
from typing import Any

from streaminfer._internal.locking import locked_subclass, public_methods, under_lock

__all__ = ["guarded", "guarded_mapping"]

_MAPPING_PROTOCOL = ("__contains__", "__delitem__", "__getitem__", "__len__", "__setitem__")
_deliver_events = methodcaller("deliver_events")


def guarded(table: type[Any]) -> type[Any]:
    """Return a subclass of a table: each operation holds a lock, releases it and then calls ``deliver_events``."""
    return locked_subclass(table, public_methods(table), after=_deliver_events, not_after=("drain",))


def guarded_mapping(mapping: type[Any]) -> type[Any]:
    """Return a subclass of a mapping: each method holds the lock of its guarded table."""
    names, memory_of = (*public_methods(mapping), *_MAPPING_PROTOCOL), attrgetter("_memory")
    operations = {name: under_lock(getattr(mapping, name), owner=memory_of, after=_deliver_events) for name in names}
    subclass: type[Any] = type("GuardedTableMapping", (mapping,), {"__slots__": (), **operations})
    return subclass
