"""What one request brought, checked and in a form that can be stacked; runs once per request.

Compiled with the C types of ``_prepare_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from streaminfer._internal.text import as_text, begins_with_text
from streaminfer.errors import InvalidInput

__all__ = ["SCALARS", "prepare"]

SCALARS = frozenset((float, bool, complex))
"""Types that numpy stacks as they are, whatever the value."""

# C variables in the compiled module, not visible from Python
_SCALARS = SCALARS
_NUMBERS = frozenset("biufc")  # kinds of dtypes


def prepare(inputs: Any) -> Any:
    """What one request brought, in a form that can be stacked.

    Args:
        inputs: a number, a string, an array of any shape and dtype but object, an array of strings, what
            ``numpy.asarray`` makes such an array of, or a mapping of names to these.

    Returns:
        The same object where it can be stacked as it is, else an array; arrays of text are arrays of Python strings.
        A mapping is copied.

    Raises:
        InvalidInput: it cannot be stacked.
    """
    kind = type(inputs)
    if kind is ndarray:
        return inputs if inputs.dtype.kind in _NUMBERS else _prepare_array(inputs, inputs)
    if kind is dict:
        prepared = {}
        for name, value in inputs.items():
            if type(value) is ndarray and value.dtype.kind in _NUMBERS:
                prepared[name] = value
            else:
                prepared[name] = prepare(value)
        return prepared
    if kind in _SCALARS or kind is str or kind is bytes:
        return inputs
    if kind is int:
        if not -(2**63) <= inputs < 2**63:  # numpy would change the type of everybody's rows
            raise InvalidInput(f"inputs: expected a whole number of 64 bits, got {inputs}")
        return inputs
    return _converted(inputs)


def _converted(inputs: Any) -> Any:
    """Return what is no array and no number in a form that can be stacked."""
    if isinstance(inputs, Mapping):
        return {name: prepare(value) for name, value in inputs.items()}
    try:
        array = np.asarray(inputs, object if begins_with_text(inputs) else None)
    except Exception as error:  # a ragged list, or an object whose own conversion fails in its own way
        raise InvalidInput(f"{_unstackable(inputs)} ({error})") from error
    return _prepare_array(array, inputs)


def _prepare_array(array: Any, inputs: Any) -> Any:
    if array.dtype.kind != "U" and not array.dtype.hasobject:
        return array
    prepared = as_text(array)
    if prepared is None:
        raise InvalidInput(_unstackable(inputs))
    return prepared


def _unstackable(inputs: object) -> str:
    return (
        f"inputs: expected a number, an array, or a mapping of arrays, got {type(inputs).__name__}"
        " that numpy cannot stack; a batcher with stack=False passes a list instead"
    )
