"""Tables and mappings whose operations hold a lock, for uncompiled code and interpreters without a lock.

The thread that holds the lock can enter it again, because an ``__eq__`` of a key or a finalizer may use the same table.
What goes is noted while the lock is held, and told and freed when it is not; so the user of a table sets ``keeping``.
"""

from operator import attrgetter, methodcaller
from typing import Any

from streaminfer._internal.locking import locked_subclass, under_lock

__all__ = ["guarded", "guarded_mapping"]

_MAPPING_PROTOCOL = ("__contains__", "__delitem__", "__getitem__", "__len__", "__setitem__")
_tell = methodcaller("tell")


def guarded(table: type[Any]) -> type[Any]:
    """Return a subclass of a table, each of whose operations holds a lock and then, without it, calls ``tell``."""
    return locked_subclass(table, _public_methods(table), after=_tell, not_after=("drain",))


def guarded_mapping(mapping: type[Any]) -> type[Any]:
    """Return a subclass of a mapping, each of whose methods holds the lock of its guarded table."""
    names, memory_of = (*_public_methods(mapping), *_MAPPING_PROTOCOL), attrgetter("_memory")
    operations = {name: under_lock(getattr(mapping, name), owner=memory_of, after=_tell) for name in names}
    made: type[Any] = type("GuardedTableMapping", (mapping,), {"__slots__": (), **operations})
    return made


def _public_methods(of: type[Any]) -> list[str]:
    return [name for name, it in vars(of).items() if callable(it) and not name.startswith("_")]
