"""Weak references to values that left a cache, so that a proof finds those that still live.

Arrays that ``defensive_copy.freeze`` made are watched. Callers of wrapped services get views of such an array and never
the array itself. One that outlives its entry is therefore referred to by this package, or by a caller of the mapping's
``get`` and ``fetch``. Other values cannot be told from those of callers, or have no weak references.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from streaminfer.caching.events import CacheEvent

__all__ = ["Departed"]

_DEEPEST = 16


class Departed:
    """Arrays of entries that expired or were erased, as long as they live. Thread-safe."""

    def __init__(self) -> None:
        self._alive: weakref.WeakValueDictionary[int, np.ndarray[Any, Any]] = weakref.WeakValueDictionary()

    def on_event(self, event: CacheEvent) -> None:
        """Watch the value of an entry that has gone."""
        if event.kind != "evicted":  # an evicted value may be used as long as it may be stored
            for array in _copies(event.value, _DEEPEST):
                self._alive[id(array)] = array

    def alive_beside(self, preserved: Iterable[Any]) -> int:
        """Return how many live that are no part of preserved values."""
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
