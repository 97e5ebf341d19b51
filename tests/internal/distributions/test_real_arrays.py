"""Arrays of numbers as arguments."""

import numpy as np
import pytest

from streaminfer._internal.distributions.real_arrays import real_array

OTHERS = [None, "x", ["1"], {}, [1, [2]], [10**400], [1j], np.ma.array([1.0, 2.0], mask=[False, True])]


@pytest.mark.parametrize("values", OTHERS, ids=lambda it: repr(it)[:8])
def test_other_values_are_named(values):
    """The error names the argument, whatever NumPy says of the value."""
    with pytest.raises(TypeError, match=r"^delays: expected an array of real numbers, got "):
        real_array("delays", values)


def test_numbers_become_floats():
    """Integers become floats, and an array of floats in C order is returned unchanged."""
    floats = np.ones((2, 3))

    assert real_array("delays", [1, 2]).tolist() == [1.0, 2.0]
    assert real_array("delays", floats) is floats
    assert real_array("delays", floats.T).flags.c_contiguous
