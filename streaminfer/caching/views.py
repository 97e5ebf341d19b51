"""Views of a cache's ``values()`` and ``items()``: snapshots of fresh entries, which count as no use."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any

__all__ = ["FreshItems", "FreshValues"]

_NOTHING: Any = object()


class FreshValues(ValuesView[Any]):
    """Values, as a snapshot."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping._memory.snapshot(1))  # type: ignore[attr-defined]

    def __contains__(self, value: object) -> bool:
        return any(held is value or held == value for held in self)


class FreshItems(ItemsView[Any, Any]):
    """Keys and values, as a snapshot."""

    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        flat = iter(self._mapping._memory.snapshot(2))  # type: ignore[attr-defined]
        return zip(flat, flat, strict=True)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        held = self._mapping.peek(item[0], _NOTHING)  # type: ignore[attr-defined]
        return held is item[1] or (held is not _NOTHING and bool(held == item[1]))
