"""Check of one request's inputs, and their conversion to a form that can be stacked; runs once per request.

Compiled with the C types of ``_prepare_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from streaminfer._internal.masked import reject_mask
from streaminfer._internal.text import as_text, begins_with_text
from streaminfer.errors import InvalidInput, text_of_error

__all__ = ["SCALARS", "prepare"]

SCALARS = frozenset((float, bool, complex))
"""Types that NumPy stacks unchanged, whatever their value."""

# C variables in the compiled module, not visible from Python
_SCALARS = SCALARS
_NUMBERS = frozenset("biufc")  # kinds of dtypes
_MAX_DEPTH = 64  # nested mappings: without a limit, recursion in compiled code would crash the process


def prepare(inputs: Any, where: str = "inputs", name: Any = None, depth: int = 0) -> Any:
    """Return one request's inputs in a form that can be stacked.

    Args:
        inputs: a number, a string, an array of any shape and any dtype but object, an array of string or bytes objects,
            a value that ``numpy.asarray`` converts to such an array, or a mapping of names to these.
        where: name of the inputs, or of the mapping around them, for messages.
        name: name of this input in that mapping.
        depth: number of mappings around it.

    Returns:
        The same object if it can be stacked unchanged, otherwise an array; arrays of text are arrays of Python strings.
        A mapping is copied.

    Raises:
        InvalidInput: the inputs cannot be stacked.
    """
    kind = type(inputs)
    if kind is ndarray:
        return inputs if inputs.dtype.kind in _NUMBERS else _prepare_array(inputs, inputs, _place(where, name, depth))
    if kind is dict:
        if depth == _MAX_DEPTH:
            raise InvalidInput(f"inputs: nested deeper than {_MAX_DEPTH} levels, or a mapping that contains itself")
        if depth:
            where = _place(where, name, depth)
        prepared = {}
        for name, value in inputs.items():  # noqa: PLR1704 - its own name is in `where` by now
            kind = type(value)
            if (kind is ndarray and value.dtype.kind in _NUMBERS) or kind in _SCALARS:
                prepared[name] = value
            else:
                prepared[name] = prepare(value, where, name, depth + 1)
        return prepared
    if kind in _SCALARS or kind is str or kind is bytes:
        return inputs
    if kind is int:
        if not -(2**63) <= inputs < 2**63:  # NumPy would change the dtype of all rows
            raise InvalidInput(f"{_place(where, name, depth)}: expected a whole number of 64 bits, got {inputs}")
        return inputs
    return _converted(inputs, where, name, depth)


def _place(where: str, name: Any, depth: int) -> str:
    """Return the name of an input for messages; only built for an error, because each request would pay for it."""
    return f"{where}[{name!r}]" if depth else where


def _converted(inputs: Any, where: str, name: Any, depth: int) -> Any:
    """Return a value that is neither an array nor a number in a form that can be stacked."""
    place = _place(where, name, depth)
    reject_mask(inputs, place)
    try:
        if isinstance(inputs, Mapping):
            array: Any = dict(inputs)
        else:
            array = np.asarray(inputs, object if begins_with_text(inputs) else None)
    except Exception as error:  # a ragged list, or an object whose conversion raises any error
        raise InvalidInput(f"{_unstackable(inputs, place)} ({text_of_error(error)})") from error
    return prepare(array, where, name, depth) if type(array) is dict else _prepare_array(array, inputs, place)


def _prepare_array(array: Any, inputs: Any, where: str) -> Any:
    if array.dtype.kind != "U" and not array.dtype.hasobject:
        return array
    prepared = as_text(array)
    if prepared is None:
        raise InvalidInput(_unstackable(inputs, where))
    return prepared


def _unstackable(inputs: object, where: str) -> str:
    actual = f"an array of {inputs.dtype}" if isinstance(inputs, ndarray) else type(inputs).__name__
    return (
        f"{where}: expected a number, an array, or a mapping of arrays, got {'None' if inputs is None else actual}"
        " that numpy cannot stack; a batcher with stack=False passes a list instead"
    )
