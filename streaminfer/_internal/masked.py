"""Check for masked arrays, because a conversion to a plain array loses the mask."""

from typing import Any, TypeGuard

import numpy as np

from streaminfer.errors import InvalidInput

__all__ = ["is_masked", "reject_mask"]


def is_masked(value: object) -> TypeGuard["np.ma.MaskedArray[Any, Any]"]:
    """Return whether a value is a masked array."""
    # the type check first: `numpy.ma` takes 8 ms to load, which a request with plain arrays need not wait for
    return isinstance(value, np.ndarray) and type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray)


def reject_mask(inputs: object, where: str) -> None:
    """Reject a masked array as input, because no model would see its mask.

    Raises:
        InvalidInput: the input is a masked array.
    """
    if is_masked(inputs):
        raise InvalidInput(
            f"{where}: expected an array without a mask, got a masked array {inputs.dtype}{list(inputs.shape)}: "
            "its mask would be lost: fill it with .filled()"
        )
