"""Mapping methods of `EdgeCache`: compiled, so that a hit costs no Python frame between the caller and the table.

One source, compiled with the C types of ``_mapping_cy.pxd`` or run as plain Python.
"""

from typing import Any

__all__ = ["TableMapping"]

_ABSENT: Any = object()


class TableMapping:
    """Mapping methods on the memory of a cache.

    Args:
        memory: a table; with a retention policy it also needs ``put`` and ``add``, which label stored values.
        has_policy: whether there is a retention policy.
    """

    __slots__ = ("_has_policy", "_memory")

    def __init__(self, memory: Any, has_policy: bool) -> None:
        self._memory = memory
        self._has_policy = has_policy

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the fresh value of a key, which counts as a use; else ``default``."""
        return self._memory._get(key, default)

    def peek(self, key: Any, default: Any = None) -> Any:
        """Return the fresh value of a key, without counting a lookup or a use."""
        return self._memory.peek(key, default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the fresh value of a key, which counts as a use; else store ``default`` and return it."""
        if self._has_policy:
            return self._memory.add(key, default)
        return self._memory.setdefault(key, default)

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return the fresh entry that would be evicted next."""
        return self._memory.popitem()  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Remove all entries, and the eviction policy's ghosts, and release the memory."""
        self._memory.clear()

    def __getitem__(self, key: Any) -> Any:
        value = self._memory._get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._has_policy:
            self._memory.put(key, value)
        else:
            self._memory._set(key, value)

    def __delitem__(self, key: Any) -> None:
        if self._memory.take(key, _ABSENT) is _ABSENT:
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        return self._memory._has(key)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._memory.count_fresh()  # type: ignore[no-any-return]
