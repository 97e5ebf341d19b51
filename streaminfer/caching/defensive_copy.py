"""Copies of values and errors for a cache: no other code can change them, and they keep no other object alive.

A model's output is often a row of the array of a whole batch, or a buffer that the next call fills again. The cache
therefore copies arrays when it stores them, once per miss, into read-only memory. The copy also gives the exact number
of bytes that an entry holds. An error is stored without its traceback, because the frames hold the request's inputs.
"""

import copy
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np

from streaminfer._internal.masked import is_masked
from streaminfer._internal.validation import expected
from streaminfer.errors import copy_error

__all__ = ["freeze", "replace_objects", "strip_traceback"]

_MAX_CAUSES = 8


def freeze(value: Any) -> Any:
    """Return the stored form of a value; ``_hit_path_cy.copy_out`` makes a caller's copy from it.

    Arrays and records (``np.void``), also inside dicts, lists and tuples, become read-only views of copies. Other
    objects are stored without a copy; all callers share them and must not change them.

    Raises:
        TypeError: the value can be used only once: an iterator, a generator or an awaitable.
    """
    if isinstance(value, (Iterator, AsyncIterator, Awaitable)):
        expectation = "a value that can be used more than once, not an iterator or awaitable (make a list of it)"
        raise TypeError(expected("value", expectation, value))
    return _freeze(value)


def _freeze(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.void)):  # a row of an array of records is a view of it
        return _freeze_array(value)
    if isinstance(value, tuple):
        items = [_freeze(item) for item in value]
        if all(map(operator.is_, items, value)):  # unchanged: also of a class that cannot be built from its items
            return value
        return getattr(type(value), "_make", tuple)(items)
    if isinstance(value, dict):
        mapping = copy.copy(value)
        for name, item in value.items():
            mapping[name] = _freeze(item)
        return mapping
    if isinstance(value, list):
        sequence = copy.copy(value)
        sequence[:] = [_freeze(item) for item in value]
        return sequence
    return value


def _freeze_array(value: Any) -> Any:
    array = np.array(np.asanyarray(value), order="K", subok=True)  # NumPy returns a view for a single record
    if array.dtype.hasobject:
        replace_objects(array.view(np.ndarray), _freeze)  # a masked array would make arrays of lists
    if is_masked(array):  # views share its mask and its fill value, which is an array too
        masked: Any = array
        for own in (masked._mask, masked._fill_value):
            if isinstance(own, np.ndarray):
                own.setflags(write=False)
    array.setflags(write=False)
    return array[()] if isinstance(value, np.void) else array.view()


def replace_objects(array: np.ndarray[Any, Any], replace: Callable[[Any], Any]) -> None:
    """Replace each object of an array, such as an array within it, also those in the fields of its records.

    Args:
        array: an array with objects, no subclass.
        replace: returns the object that takes the place of another one.
    """
    if array.dtype.names:
        for name in array.dtype.names:
            if array.dtype[name].hasobject:
                replace_objects(array[name], replace)
    else:
        objects = array.flat
        for place in range(array.size):
            objects[place] = replace(objects[place])


def strip_traceback(error: BaseException, levels: int = _MAX_CAUSES) -> BaseException:
    """Return a copy of an error and its causes without tracebacks, which would keep whole frames alive."""
    own = copy_error(error)
    if own is error:  # not copyable: the first caller still reads the original, so it must not be changed
        text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
        return RuntimeError(f"{text} (stored by an earlier call; the error itself cannot be copied)")
    own.__traceback__ = None
    own.__context__ = None
    own.__cause__ = strip_traceback(error.__cause__, levels - 1) if error.__cause__ is not None and levels else None
    return own
