"""What a hit costs: make the key, read the clock, look into the table, hand out what is there.

Compiled, since a hit takes less than a microsecond in all and a Python closure around a compiled table would take as
long again. Everything else (a miss, a stale or a negative entry) goes to ``cache_layer`` as a :class:`Miss`.

**Handing out.** What the cache keeps has arrays that own their memory and are marked read-only (``kept.keep`` made
them). A caller gets a view, which NumPy does not let anybody make writeable, in a container of the caller's own: to
change a dict or list that was handed out changes nothing in the cache.

One source, compiled with the C types of ``_hit_path_cy.pxd`` or run as it is.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from numpy import ndarray

if TYPE_CHECKING:
    from streaminfer.caching._keys_cy import KeyMaker
    from streaminfer.caching.table._table_cy import EdgeTable
    from streaminfer.protocols import Clock

__all__ = ["HitPath", "Miss", "copy_out"]

monotonic_ns = time.monotonic_ns

_FRESH = 1


class Miss:
    """What is not simply a hit.

    Attributes:
        key: under which it was looked for.
        state: ``MISSING``, ``STALE`` or ``NEGATIVE``.
        value: the stale value, or the error.
        now_ns: when it was looked for.
    """

    __slots__ = ("key", "now_ns", "state", "value")

    def __init__(self, key: Any, state: int, value: Any, now_ns: int) -> None:
        self.key = key
        self.state = state
        self.value = value
        self.now_ns = now_ns


class HitPath:
    """Looks things up in a cache for one wrapped thing.

    Args:
        table: the cache.
        maker: makes the keys.
    """

    __slots__ = ("_maker", "_table")

    def __init__(self, table: EdgeTable, maker: KeyMaker) -> None:
        self._table = table
        self._maker = maker

    def look(self, inputs: Any, tenant: str | None = None) -> Any:
        """What the cache has for these inputs, ready for a caller; or a :class:`Miss`.

        Raises:
            InvalidInput: something among the inputs cannot be keyed.
        """
        return self.find(self._maker.key(inputs, tenant))

    def key(self, inputs: Any, tenant: str | None = None) -> Any:
        """The key of these inputs.

        Raises:
            InvalidInput: something among the inputs cannot be keyed.
        """
        return self._maker.key(inputs, tenant)

    def find(self, key: Any) -> Any:
        """What the cache has under this key, ready for a caller; or a :class:`Miss`."""
        now_ns = self._now()
        found = self._table.lookup(key, now_ns)
        if found[0] == _FRESH:
            return copy_out(found[1])
        return Miss(key, found[0], found[1], now_ns)

    def now(self) -> int:
        """The present instant on the cache's clock, monotonic nanoseconds."""
        return self._now()

    def _now(self) -> int:
        clock: Clock | None = self._table.clock
        if clock is None:
            return monotonic_ns()
        return clock()


def copy_out(value: Any) -> Any:
    """A caller's own view of what is kept: arrays as read-only views, containers as copies, all else as it is.

    Args:
        value: what ``kept.keep`` returned.
    """
    kind = type(value)
    if kind is ndarray:
        return value.view()
    if kind is str or kind is int or kind is float or kind is bytes or value is None:
        return value
    if kind is dict:
        return {name: copy_out(item) for name, item in value.items()}
    if kind is list:
        return [copy_out(item) for item in value]
    if isinstance(value, (tuple, dict, list)):
        return _hand_out_other(value, kind)
    return value.view() if isinstance(value, ndarray) else value


def _hand_out_other(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        items = [copy_out(item) for item in value]
        for position in range(len(items)):
            if items[position] is not value[position]:
                return kind._make(items) if hasattr(kind, "_make") else tuple(items)
        return value
    own = copy.copy(value)
    for place in own if isinstance(own, dict) else range(len(own)):
        own[place] = copy_out(own[place])
    return own
