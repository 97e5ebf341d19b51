"""Hit path of wrapped services and functions: make the key, read the clock, look up the entry, copy the value.

*Design.* It is compiled because a hit takes less than a microsecond; a Python closure around a compiled table would
double that. Everything else (a miss, a stale or a negative entry) goes to a `Layer` as a :class:`Miss`.

*Copies.* Arrays of stored values own their memory and are read-only (``defensive_copy.freeze``). A caller gets views,
which NumPy never makes writeable, in its own containers. Changing these containers does not change the cache. An array
of objects, or of records with objects, may hold containers, so a caller gets a copy of it.

One source, compiled with the C types of ``_hit_path_cy.pxd`` or run as plain Python.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from numpy import asanyarray, dtype, ndarray, void

from streaminfer.caching.defensive_copy import replace_objects

if TYPE_CHECKING:
    from streaminfer.caching._keys_cy import KeyMaker
    from streaminfer.caching.table._table_cy import EdgeTable

__all__ = ["HitPath", "Miss", "copy_out"]

_FRESH = 1
_ABSENT: Any = object()
_OBJECT_DTYPE = type(dtype(object))  # the class: dtypes of unpickled arrays are other instances
_RECORD_DTYPE = type(dtype(void))


class Miss:
    """Outcome of a lookup without a fresh value.

    Attributes:
        key: of the entry.
        state: ``MISSING``, ``STALE``, ``OUTDATED`` or ``NEGATIVE``.
        value: the stale value, or the error.
        now_ns: when it was looked up.
        fallback: ``erasures`` of the table before the lookup, and the instant until which the value can be used.
    """

    def __init__(self, key: Any, state: int, value: Any, now_ns: int, fallback: tuple[int, int]) -> None:
        self.key = key
        self.state = state
        self.value = value
        self.now_ns = now_ns
        self.fallback = fallback


class HitPath:
    """Lookups in a cache for one wrapped service or function.

    Args:
        table: memory of the cache.
        maker: makes the keys.
    """

    def __init__(self, table: EdgeTable, key_maker: KeyMaker) -> None:
        self._table = table
        self._key_maker = key_maker

    def lookup(self, inputs: Any) -> Any:
        """Return a caller's copy of the fresh value for these inputs; or a :class:`Miss`.

        Raises:
            InvalidInput: something among the inputs cannot be keyed.
        """
        return self.find(self._key_maker.key(inputs, None))

    def key(self, inputs: Any, tenant: str | None = None) -> bytes:
        """Return the key of these inputs.

        Raises:
            InvalidInput: something among the inputs cannot be keyed.
        """
        return self._key_maker.key(inputs, tenant)

    def find(self, key: Any) -> Any:
        """Return a caller's copy of the fresh value of this key; or a :class:`Miss`."""
        fresh = self._table.hit(key, _ABSENT)  # faster than `lookup`, which also tells why there is none
        if fresh is not _ABSENT:
            return copy_out(fresh)
        now_ns = self._table._read()
        erasures = self._table.erasures
        state, value, until_ns = self._table.lookup(key, now_ns)
        return copy_out(value) if state == _FRESH else Miss(key, state, value, now_ns, (erasures, until_ns))


def copy_out(value: Any) -> Any:
    """Return a caller's copy of a stored value: read-only views of arrays, copies of containers, other objects as is.

    An array of objects, or of records with objects, is a read-only copy, with a caller's copy of each object.

    Args:
        value: what ``defensive_copy.freeze`` returned.
    """
    kind = type(value)
    if kind is ndarray:
        return _copy_out_array(value)
    if kind is str or kind is int or kind is float or kind is bytes or value is None:
        return value
    if kind is dict:
        return {name: copy_out(item) for name, item in value.items()}
    if kind is list:
        return [copy_out(item) for item in value]
    if isinstance(value, (tuple, dict, list, void)):
        return _copy_out_other(value, kind)
    return _copy_out_array(value) if isinstance(value, ndarray) else value


def _copy_out_array(value: Any) -> Any:
    kind = type(value.dtype)
    if kind is not _OBJECT_DTYPE and (kind is not _RECORD_DTYPE or not value.dtype.hasobject):
        return value[...] if type(value) is ndarray else value.view()  # indexing is the faster way to a view
    own = value.copy(order="K")
    replace_objects(own.view(ndarray), copy_out)  # a masked array would make arrays of lists
    own.setflags(write=False)
    return own


def _copy_out_other(value: Any, kind: Any) -> Any:
    if isinstance(value, void):
        return _copy_out_array(asanyarray(value))[()] if value.dtype.hasobject else value
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
