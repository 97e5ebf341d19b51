"""Bytes that a cached value keeps in memory, accurate enough to limit a cache.

* An array, or any object with ``nbytes``: the ``nbytes`` of the object that owns the memory. A slice of ten rows keeps
  the whole array alive and therefore weighs as much.
* ``bytes``, ``bytearray``: the length. ``str``: the number of characters times their width in memory.
* A tuple, list, set, frozenset or mapping: ``sys.getsizeof`` plus its parts. An object that occurs twice counts once.
* Anything else: ``sys.getsizeof``, which does not see attributes. Pass ``size=`` for objects with large attributes.
"""

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["payload_bytes"]

_PLAIN = (bytes, bytearray)
_CONTAINERS = (tuple, list, set, frozenset, Mapping)


def payload_bytes(value: Any) -> int:
    """Return the bytes that a value keeps in memory, by the rules above.

    Args:
        value: anything.

    Returns:
        A number ≥ 0.
    """
    if not isinstance(value, _CONTAINERS):
        return _bytes_of_one(value, _owner(value))
    total = 0
    seen: set[int] = set()
    pending = [value]
    while pending:
        part = pending.pop()
        owner = _owner(part)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if not isinstance(part, _CONTAINERS):
            total += _bytes_of_one(part, owner)
            continue
        total += sys.getsizeof(part)
        pending.extend(part)
        if isinstance(part, Mapping):
            pending.extend(part.values())
    return total


def _bytes_of_one(value: Any, owner: Any) -> int:
    if isinstance(owner, _PLAIN):
        return len(owner)
    size = _nbytes(owner)
    if size >= 0:
        return size
    if isinstance(value, str):
        widest = 1 if value.isascii() else 4 if max(value) > "\uffff" else 2 if max(value) > "\xff" else 1
        return len(value) * widest
    return sys.getsizeof(value)


def _nbytes(value: Any) -> int:
    """Return the ``nbytes`` of a value; -1 if it has none, or if it is not a count."""
    size = getattr(value, "nbytes", None)
    return size if isinstance(size, int) and size >= 0 else -1


def _owner(value: Any) -> Any:
    """Return the object that owns the memory of an array or a memoryview."""
    owner = value
    while _nbytes(owner) >= 0:
        base = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        if _nbytes(base) < 0 and not isinstance(base, _PLAIN):
            break
        owner = base
    return owner
