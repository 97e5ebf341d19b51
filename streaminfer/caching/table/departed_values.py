"""Weak references to answers that a cache has let go, so that a proof finds those that something still holds.

Watched are arrays that the cache copied when it kept them (``kept.keep``). A caller gets views of such a copy and never
the object itself, so one that outlives its entry is held by something in this package, or by a caller of the mapping's
``get`` and ``fetch``. Other values cannot be told from those of callers, or have no weak references.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from streaminfer.caching.table.events import CacheEvent

__all__ = ["Departed"]

_DEEPEST = 16


class Departed:
    """Arrays of entries that expired or were erased, as long as they live. A listener of a cache; thread-safe."""

    def __init__(self) -> None:
        self._alive: weakref.WeakValueDictionary[int, np.ndarray[Any, Any]] = weakref.WeakValueDictionary()

    def hear(self, event: CacheEvent) -> None:
        """Watches the value of an entry that has gone."""
        if event.kind != "evicted":  # one that gave way to others may be used as long as it is allowed to be kept
            for array in _copies(event.value, _DEEPEST):
                self._alive[id(array)] = array

    def alive_beside(self, preserved: Iterable[Any]) -> int:
        """How many live that are no part of answers which are preserved on purpose."""
        known = {id(array) for value in preserved for array in _copies(value, _DEEPEST)}
        return sum(id(array) not in known for array in list(self._alive.values()))


def _copies(value: Any, levels: int) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        owner = value.base
        if isinstance(owner, np.ndarray) and not owner.flags.writeable:
            yield value
    elif levels and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _copies(item, levels - 1)
