"""Copies of the arrays in what a model returned, so that the next batch cannot write to them.

A model that reuses its output memory (``out=``, bound outputs of a runtime, Numba) overwrites one batch's outputs with
the next one's. The copy is made once for each array of a batch, before it is cut into rows, and before the model can
start again: in the worker thread where there is one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

__all__ = ["own_arrays"]

_PLAIN = frozenset({float, int, str})


def own_arrays(results: Any) -> Any:  # noqa: PLR0911 - one for each kind
    """Return the results with a copy in place of each array.

    Args:
        results: what a model returned for a batch: an array, a list of results, or a mapping or tuple of these, nested
            to any depth. Whatever lies within objects of other classes is not copied.

    Returns:
        The same structure; plain values and exceptions are the same objects.
    """
    kind = type(results)
    if kind is ndarray:
        if results.dtype.hasobject:
            return _own_objects(results)
        return results.copy()
    if kind in _PLAIN:
        return results
    if kind is list:
        # numbers, the most frequent entries, take no call each
        return [entry if type(entry) in _PLAIN else own_arrays(entry) for entry in results]
    if isinstance(results, tuple):
        entries = [own_arrays(entry) for entry in results]
        return getattr(kind, "_make", tuple)(entries)  # a named tuple stays one
    if isinstance(results, Mapping):
        return {name: own_arrays(value) for name, value in results.items()}
    if isinstance(results, np.generic):
        return results
    if isinstance(results, np.ndarray):
        return results.copy()
    return _own_foreign(results)


def _own_objects(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copied = array.copy()
    flat = copied.reshape(-1)  # a view: the copy is contiguous
    for position in range(flat.size):
        flat[position] = own_arrays(flat[position])
    return copied


def _own_foreign(value: Any) -> Any:
    """A copy of another library's array: PyTorch calls it ``clone``, the others ``copy``."""
    if not hasattr(value, "shape") or not hasattr(value, "__getitem__"):
        return value
    copy = getattr(value, "clone", None) or getattr(value, "copy", None)
    return copy() if callable(copy) else value
