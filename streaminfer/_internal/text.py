"""Text in the inputs of requests, as arrays of Python strings.

In NumPy's text types every element is as wide as the longest: 63 short strings beside one of 2 MB take 512 MB.
An array of objects has one pointer for each element, and a batch shares the strings with its requests.
NumPy's text types also drop zeros at the end of an element, so bytes that end with zeros would be cut.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHARACTER_BYTES",
    "as_text",
    "begins_with_text",
    "has_text",
    "is_all_text",
    "is_all_unicode",
    "text_bytes",
]

CHARACTER_BYTES = 4
"""Bytes of a character as `max_batch_bytes` counts them: the most that Python or UTF-8 needs for a character."""


def begins_with_text(inputs: Any) -> bool:
    """Return whether a value is a string or bytes, or a nested list that begins with one."""
    while isinstance(inputs, (list, tuple)) and inputs:
        inputs = inputs[0]
    return isinstance(inputs, (str, bytes))


def is_all_text(array: NDArray[Any]) -> bool:
    """Return whether every element of an array of objects is a string."""
    return all(isinstance(element, str) for element in array.flat)


def is_all_unicode(array: NDArray[Any]) -> bool:
    """Return whether every element of an array is a string that UTF-8 can encode, without half a surrogate pair."""
    try:
        return is_all_text(array) and all(element.isascii() or element.encode() for element in array.flat)
    except UnicodeEncodeError:
        return False


def as_text(array: NDArray[Any]) -> Any:
    """Return an array of text as an array of Python strings, or as a string if it has no axes; bytes likewise.

    Args:
        array: an array of one of NumPy's text types, or of objects.

    Returns:
        ``None`` unless the array holds only text, or only bytes.
    """
    if array.dtype.kind in "UT":
        array = array.astype(object)
    if array.dtype.kind == "O":
        for kind in (str, bytes):
            if all(isinstance(element, kind) for element in array.flat):
                return array if array.ndim else kind(array.item())
    return None


def has_text(inputs: Any) -> bool:
    """Return whether prepared inputs contain text, whose rows may differ in size."""
    if type(inputs) is dict:
        return any(map(has_text, inputs.values()))
    return isinstance(inputs, (str, bytes)) or (isinstance(inputs, np.ndarray) and inputs.dtype.hasobject)


def text_bytes(value: str | bytes | NDArray[Any]) -> int:
    """Return the bytes of a prepared string, of bytes, or of an array of these."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, str):
        return CHARACTER_BYTES * len(value)
    return sum(map(text_bytes, value.flat))
