"""Masked arrays, whose mask every conversion to a plain array loses."""

import numpy as np

from streaminfer.errors import InvalidInput

__all__ = ["refuse_mask"]


def refuse_mask(inputs: object, where: str) -> None:
    """Refuse an input with a mask, because no model would see it.

    Raises:
        InvalidInput: it is a masked array.
    """
    # a plain array, the common one, does not load `numpy.ma`
    if isinstance(inputs, np.ndarray) and type(inputs) is not np.ndarray and isinstance(inputs, np.ma.MaskedArray):
        raise InvalidInput(
            f"{where}: expected an array without a mask, got a masked array {inputs.dtype}{list(inputs.shape)}: "
            "its mask would be lost: fill it with .filled()"
        )
