"""Fast check of a request's inputs against what a model reads; runs once per request.

The check returns only whether all inputs fit; :mod:`~streaminfer.backends.signature` then finds what is wrong.
Compiled with the C types of ``_input_check_cy.pxd``, or run as Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

if TYPE_CHECKING:
    from streaminfer._request_cy import Request

__all__ = ["InputCheck", "RequestCheck", "inputs_fit"]


class InputCheck:
    """Check of one input array, with everything that is the same for all requests computed in advance.

    Args:
        name: the name of the input.
        dtype: the dtype of the array.
        shape: the shape of a request's array: sizes, and a name or ``None`` for an axis of any size.
        text_fits: returns whether an array of objects is valid; ``None``: the elements are numbers.
        finite: whether infinite elements and NaN are rejected.

    Attributes:
        name, dtype, shape, text_fits, finite: the arguments.
    """

    def __init__(
        self,
        name: str,
        dtype: Any,
        shape: tuple[Any, ...],
        *,
        text_fits: Callable[[Any], bool] | None,
        finite: bool,
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.text_fits = text_fits
        self.finite = finite
        self._rank = len(shape)
        self._fixed = tuple([(axis, size) for axis, size in enumerate(shape) if isinstance(size, int)])
        # a shape without free sizes is compared in one step
        self._exact = shape if len(self._fixed) == self._rank else None

    def fits(self, value: Any) -> bool:
        """Return true only if ``value`` is a plain NumPy array whose dtype, shape and contents fit."""
        if type(value) is not ndarray:
            return False
        dtype = value.dtype
        if dtype is not self.dtype and dtype != self.dtype:
            return False
        shape = value.shape
        if shape != self._exact and not self._fits_shape(shape):
            return False
        if self.text_fits is not None:
            return self.text_fits(value)
        return not self.finite or bool(np.isfinite(value).all())

    def _fits_shape(self, shape: tuple[int, ...]) -> bool:
        if self._exact is not None or len(shape) != self._rank or 0 in shape:
            return False
        for axis, size in self._fixed:  # noqa: SIM110 - all() would make a generator
            if shape[axis] != size:
                return False
        return True


def inputs_fit(checks: tuple[InputCheck, ...], only: InputCheck | None, inputs: Any) -> bool:
    """Return whether the inputs are exactly the expected ones and each of them fits.

    Args:
        checks: one check per expected input.
        only: the check of the one input that may come without a name; ``None``: every input needs a name.
        inputs: the inputs of a request: one array, or a mapping of name to array.
    """
    if type(inputs) is not dict:
        return only is not None and only.fits(inputs)
    if len(inputs) != len(checks):
        return False
    for check in checks:  # noqa: SIM110 - all() would make a generator
        if not check.fits(inputs.get(check.name)):
            return False
    return True


class RequestCheck:
    """Checks requests like `Signature`, with one function call less per request.

    Args:
        checks: one check per input; a request must have all inputs.
        only: the check of the one input that may come without a name; ``None``: every input needs a name.
        explain: called with inputs that may not fit; raises an error that says what is wrong.
    """

    def __init__(self, checks: tuple[InputCheck, ...], only: InputCheck | None, explain: Callable[[Any], None]) -> None:
        self._checks = checks
        self._only = only
        self._explain = explain

    def check(self, request: Request) -> None:
        """Check a request's inputs against the model.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        inputs = request.inputs
        if not inputs_fit(self._checks, self._only, inputs):
            self._explain(inputs)
