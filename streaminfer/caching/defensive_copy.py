"""What a cache keeps of an answer, and of an error: copies that nobody else can change, and nothing besides.

A model's output is often a row of a whole batch's array, or a buffer that the next call fills again. So arrays are
copied when they are kept, once a miss, into memory of their own that is marked read-only; a copy is also what lets the
cache know how many bytes an entry holds. An error is kept without its traceback, whose frames hold the request's
inputs.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import numpy as np

from streaminfer._internal.validation import expected

__all__ = ["copy_error", "keep", "strip_traceback"]

_DEEPEST_CAUSE = 8


def keep(value: Any) -> Any:
    """What to keep of a value; ``_hit_path_cy.copy_out`` makes of it what a caller gets.

    Arrays, also inside dicts, lists and tuples, become read-only views of copies; anything else is kept as it is and
    shared by whoever gets it, so it should not be changed.

    Raises:
        TypeError: it can be used only once: an iterator, a generator or an awaitable.
    """
    if isinstance(value, (Iterator, AsyncIterator, Awaitable)):
        what = "an answer that can be given more than once, not an iterator or awaitable (make a list of it)"
        raise TypeError(expected("answer", what, value))
    return _keep(value)


def _keep(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _keep_array(value)
    if isinstance(value, tuple):
        items = [_keep(item) for item in value]
        make = getattr(type(value), "_make", tuple)
        return make(items)
    if isinstance(value, dict):
        mapping = copy.copy(value)
        for name, item in value.items():
            mapping[name] = _keep(item)
        return mapping
    if isinstance(value, list):
        sequence = copy.copy(value)
        sequence[:] = [_keep(item) for item in value]
        return sequence
    return value


def _keep_array(value: Any) -> Any:
    array = np.array(value, order="K", subok=True)
    if array.dtype.kind == "O":  # arrays within arrays
        for place, item in enumerate(array.flat):
            array.flat[place] = _keep(item)
    if isinstance(array, np.ma.MaskedArray):  # views share its mask, and its fill value, an array as well
        masked: Any = array
        for own in (masked._mask, masked._fill_value):
            if isinstance(own, np.ndarray):
                own.setflags(write=False)
    array.setflags(write=False)
    return array.view()


def copy_error(error: BaseException) -> BaseException:
    """One caller's own copy of an error that several get: the traceback and notes that one adds are not another's.

    An error that cannot be copied is given as it is.
    """
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class that cannot be copied; its callers get the original, which is true as well
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error.__cause__
    own.__context__ = error.__context__
    own.__suppress_context__ = error.__suppress_context__
    own.__traceback__ = error.__traceback__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own


def strip_traceback(error: BaseException) -> BaseException:
    """A copy to keep: without the tracebacks, which hold whole frames alive, its own and its causes'."""
    return _bare(error, _DEEPEST_CAUSE)


def _bare(error: BaseException, levels: int) -> BaseException:
    own = copy_error(error)
    if own is error:  # no copy: of the original, which its first caller still reads, nothing may be taken away
        text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
        return RuntimeError(f"{text} (kept from an earlier call; the error itself cannot be copied)")
    own.__traceback__ = None
    own.__context__ = None
    own.__cause__ = _bare(error.__cause__, levels - 1) if error.__cause__ is not None and levels else None
    return own
