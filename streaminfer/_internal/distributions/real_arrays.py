"""Arrays of numbers as arguments."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.masked import is_masked
from streaminfer._internal.validation import expected

__all__ = ["real_array"]


def real_array(name: str, values: ArrayLike, expectation: str = "an array of real numbers") -> NDArray[np.float64]:
    """Return an argument as a C-contiguous array; it is the argument itself if that is such an array.

    Raises:
        TypeError: it does not hold real numbers, or has a mask.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise TypeError(expected(name, expectation, values)) from None
    if array.dtype.kind not in "iuf" or is_masked(values):  # values under the mask would count
        raise TypeError(expected(name, expectation, values))
    return np.asarray(array, np.float64, order="C")
