"""Bytes that a cached value keeps in memory, near enough to bound them.

* An array, and whatever else says ``nbytes``: that of the one that owns the memory. A slice of ten rows keeps the whole
  array, and weighs as much.
* ``bytes``, ``bytearray``: their length. ``str``: its characters, at the width it is stored in.
* A tuple, list, set, frozenset or mapping: ``sys.getsizeof`` and its parts, an object that is in it twice once.
* Anything else: ``sys.getsizeof``, which sees no attributes. Give ``size=`` for objects with much behind them.
"""

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["payload_bytes"]

_PLAIN = (bytes, bytearray)


def payload_bytes(value: Any) -> int:
    """Return the bytes that a value keeps in memory, by the rules above.

    Args:
        value: anything.

    Returns:
        A number ≥ 0.
    """
    if isinstance(value, (tuple, list, set, frozenset, Mapping)):
        return _of_all(value)
    return _of_one(value)


def _of_one(value: Any) -> int:
    owner = _owner(value)
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
    """Return its ``nbytes``; -1: it has none, or no number."""
    size = getattr(value, "nbytes", None)
    return size if isinstance(size, int) and size >= 0 else -1


def _owner(value: Any) -> Any:
    """Return the object that owns the memory of an array or a view of memory."""
    owner = value
    while _nbytes(owner) >= 0:
        base = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        if _nbytes(base) < 0 and not isinstance(base, _PLAIN):
            break
        owner = base
    return owner


def _of_all(value: Any) -> int:
    total = 0
    seen: set[int] = set()
    pending = [value]
    while pending:
        part = pending.pop()
        owner = _owner(part)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if isinstance(part, (tuple, list, set, frozenset)):
            total += sys.getsizeof(part)
            pending.extend(part)
        elif isinstance(part, Mapping):
            total += sys.getsizeof(part)
            for key, held in part.items():
                pending.append(key)
                pending.append(held)
        else:
            total += _of_one(part)
    return total
