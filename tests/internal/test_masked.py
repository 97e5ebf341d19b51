"""Masked arrays are rejected; plain arrays and other subclasses are accepted."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer._internal.masked import reject_mask


@pytest.mark.parametrize("inputs", [1.0, [np.zeros(2)], np.zeros(2), np.zeros(2).view(np.recarray)], ids=repr)
def test_inputs_without_a_mask_are_accepted(inputs):
    reject_mask(inputs, "x")


@pytest.mark.parametrize("inputs", [np.ma.masked, np.ma.zeros((2, 3))], ids=["constant", "array"])
def test_masked_inputs_are_rejected(inputs):
    with pytest.raises(si.InvalidInput, match=r"^x: expected an array without a mask, got a masked array float64"):
        reject_mask(inputs, "x")
