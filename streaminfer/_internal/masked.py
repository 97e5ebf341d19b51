"""Check for masked arrays, because a conversion to a plain array loses the mask."""

import numpy as np

from streaminfer.errors import InvalidInput

__all__ = ["reject_mask"]


def reject_mask(inputs: object, where: str) -> None:
    """Reject a masked array as input, because no model would see its mask.

    Raises:
        InvalidInput: the input is a masked array.
    """
    # the type check first, so that plain arrays, the common case, do not load `numpy.ma`
    if isinstance(inputs, np.ndarray) and type(inputs) is not np.ndarray and isinstance(inputs, np.ma.MaskedArray):
        raise InvalidInput(
            f"{where}: expected an array without a mask, got a masked array {inputs.dtype}{list(inputs.shape)}: "
            "its mask would be lost: fill it with .filled()"
        )
