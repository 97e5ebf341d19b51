"""Copies of the arrays in a model's results, so that the next batch cannot overwrite them.

A model that reuses its output memory (``out=``, bound outputs of a runtime, Numba) overwrites the outputs of one batch
with those of the next. Each array of a batch is copied once, before the batch is cut into rows and before the model can
start again; if the model has a worker thread, that thread copies.
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
        results: results of a model for a batch: an array, a list of results, or a mapping or tuple of these, nested to
            any depth. Contents of other objects are not copied.

    Returns:
        The same structure; plain values and exceptions remain the same objects.
    """
    kind = type(results)
    if kind is ndarray:
        if results.dtype.hasobject:
            return _copy_objects(results)
        return results.copy()
    if kind in _PLAIN:
        return results
    if kind is list:
        # checked inline, because numbers are the most frequent entries and a call for each would be slow
        return [entry if type(entry) in _PLAIN else own_arrays(entry) for entry in results]
    if isinstance(results, tuple):
        entries = [own_arrays(entry) for entry in results]
        return getattr(kind, "_make", tuple)(entries)  # keeps the class of a named tuple
    if isinstance(results, Mapping):
        return {name: own_arrays(value) for name, value in results.items()}
    if isinstance(results, np.generic):
        return results
    if isinstance(results, np.ndarray):
        return results.copy()
    return _copy_foreign(results)


def _copy_objects(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copied = array.copy()
    flat = copied.reshape(-1)  # a view: the copy is contiguous
    for position in range(flat.size):
        flat[position] = own_arrays(flat[position])
    return copied


def _copy_foreign(value: Any) -> Any:
    """Return a copy of another library's array: PyTorch calls the method ``clone``, the others ``copy``."""
    if not hasattr(value, "shape") or not hasattr(value, "__getitem__"):
        return value
    copy = getattr(value, "clone", None) or getattr(value, "copy", None)
    return copy() if callable(copy) else value
