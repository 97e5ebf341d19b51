"""Fast check of inputs, compiled and uncompiled; test_signature has the error messages for wrong inputs."""

import numpy as np
import pytest

from streaminfer._internal.text import is_all_text
from streaminfer.backends import _input_check_cy as compiled
from streaminfer.request import Request

pytestmark = pytest.mark.uncompiled

F32 = np.dtype(np.float32)


@pytest.fixture(scope="module", params=["built", "plain"])
def form(request, plain):
    return compiled if request.param == "built" else plain("backends._input_check_cy")


@pytest.mark.parametrize(
    ("shape", "value", "fits"),
    [
        ((2, 3), np.zeros((2, 3), F32), True),
        ((2, 3), np.zeros((3, 2), F32), False),
        ((2, 3), np.zeros((2, 3)), False),
        ((2, 3), [[0.0] * 3] * 2, False),
        ((2, 3), np.zeros((2, 3), F32).view(np.ma.MaskedArray), False),
        ((2, "n"), np.zeros((2, 9), F32), True),
        ((2, "n"), np.zeros((2, 0), F32), False),
        ((2, None), np.zeros((3, 9), F32), False),
        ((2, None), np.zeros((2, 9, 1), F32), False),
        ((), np.array(1, F32), True),
        ((), np.float32(1), False),
    ],
)
def test_arrays_fit_by_dtype_and_shape(form, shape, value, fits):
    assert form.InputCheck("x", F32, shape, text_fits=None, finite=False).fits(value) is fits


@pytest.mark.parametrize(("finite", "fits"), [(False, True), (True, False)])
def test_values_may_have_to_be_finite(form, finite, fits):
    check = form.InputCheck("x", F32, (2,), text_fits=None, finite=finite)
    assert check.fits(np.array([0, np.inf], F32)) is fits
    assert check.fits(np.zeros(2, F32))


def test_text_is_strings_in_an_array_of_objects(form):
    check = form.InputCheck("x", np.dtype(object), (2,), text_fits=is_all_text, finite=False)
    assert check.fits(np.array(["a", "b"], object))
    assert not check.fits(np.array(["a", 1], object))


def test_a_mapping_has_exactly_the_inputs(form):
    checks = tuple(form.InputCheck(name, F32, (2,), text_fits=None, finite=False) for name in "ab")
    right = np.zeros(2, F32)
    assert form.inputs_fit(checks, None, {"b": right, "a": right})
    assert not form.inputs_fit(checks, None, {"a": right})
    assert not form.inputs_fit(checks, None, {"a": right, "c": right})
    assert not form.inputs_fit(checks, None, {"a": right, "b": right, "c": right})
    assert not form.inputs_fit(checks, None, {"a": right, "b": np.zeros(3, F32)})


def test_one_array_may_come_without_a_name(form):
    check = form.InputCheck("a", F32, (2,), text_fits=None, finite=False)
    right = np.zeros(2, F32)
    assert form.inputs_fit((check,), check, right)
    assert form.inputs_fit((check,), check, {"a": right})
    assert not form.inputs_fit((check,), None, right)


def test_a_request_that_does_not_fit_is_explained(form):
    check = form.InputCheck("a", F32, (2,), text_fits=None, finite=False)
    explained = []
    checks = form.RequestCheck((check,), check, explained.append)
    wrong = np.zeros(3, F32)
    for inputs in (np.zeros(2, F32), {"a": np.zeros(2, F32)}, wrong):
        checks.check(Request(inputs))
    assert len(explained) == 1
    assert explained[0] is wrong
