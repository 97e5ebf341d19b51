"""Checks of requests against a model's signature, without any runtime."""

from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streaminfer import errors
from streaminfer.backends.signature import Signature, TensorSpec, check_value, free_axes, guess_inputs
from streaminfer.request import Request

F32 = np.dtype(np.float32)


def one(shape=("batch", 4, "n"), dtype=F32, axis=0, **options):
    return Signature([TensorSpec("x", np.dtype(dtype), shape, axis)], [], **options)


def two(**options):
    return Signature(
        [
            TensorSpec("input", F32, ("batch", "sequence"), 0),
            TensorSpec("state", F32, (2, "batch", 128), 1),
            TensorSpec("sr", np.dtype(np.int64), (), None),
        ],
        [],
        **options,
    )


def read_only(array):
    array.flags.writeable = False
    return array


INPUT, STATE = np.zeros(576, np.float32), np.zeros((2, 128), np.float32)


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        (one(), np.zeros((4, 7), np.float32)),
        (one(), np.zeros((4, 1), np.float32)),
        (one(), {"x": np.zeros((4, 7), np.float32)}),
        (one(), MappingProxyType({"x": np.zeros((4, 7), np.float32)})),
        (one(), np.zeros((7, 4), np.float32).T),
        (one(), np.zeros((4, 14), np.float32)[:, ::-2]),
        (one(), read_only(np.zeros((4, 7), np.float32))),
        (one(), np.broadcast_to(np.float32(1), (4, 7))),
        (one(), np.zeros((4, 7), np.float32).view(type("Sub", (np.ndarray,), {}))),
        (one(), np.full((4, 7), np.nan, np.float32)),
        (one(non_finite="reject"), np.zeros((4, 7), np.float32)),
        (one(dtype=np.int64, non_finite="reject"), np.zeros((4, 7), np.int64)),
        (one(shape=("batch",)), np.float32(3)),
        (one(shape=("batch",)), np.array(3, np.float32)),
        (one(shape=(3, "batch"), axis=1), np.zeros(3, np.float32)),
        (two(), {"input": INPUT, "state": STATE}),
        (two(), {"state": STATE, "input": INPUT}),
        (two(), MappingProxyType({"input": INPUT, "state": STATE})),
    ],
)
def test_a_request_that_fits_is_let_through(signature, inputs):
    assert signature.check(inputs) is None


@pytest.mark.parametrize(
    ("signature", "inputs", "parts"),
    [
        (one(), np.zeros((4, 7)), ["'x'", "float32[4, n]", "float64[4, 7]", "x.astype('float32')"]),
        (one(), np.zeros((4, 7), ">f4"), ["'x'", "float32[4, n]", ">f4[4, 7]", "x.astype('float32')"]),
        (one(dtype=bool), np.zeros((4, 7), np.uint8), ["'x'", "bool[4, n]", "uint8[4, 7]"]),
        (one(), np.zeros((4, 7), object), ["'x'", "float32[4, n]", "object[4, 7]"]),
        (one(), np.zeros((4, 7), "U3"), ["'x'", "float32[4, n]", "<U3[4, 7]"]),
        (one(), np.zeros((5, 7), np.float32), ["'x'", "float32[4, n]", "float32[5, 7]", "axis 0 has 5 instead of 4"]),
        (one(), np.zeros(4, np.float32), ["'x'", "float32[4, n]", "float32[4]", "1 dimensions instead of 2, none of them a batch axis"]),
        (one(), np.zeros((1, 4, 7), np.float32), ["'x'", "float32[4, n]", "float32[1, 4, 7]", "no batch axis"]),
        (one(), np.zeros((4, 0), np.float32), ["'x'", "float32[4, n]", "float32[4, 0]", "axis 1 is empty"]),
        (one(), [[1.0]], ["'x'", "float32[4, n]", "list [[1.0]]", "np.asarray(x, dtype='float32')"]),
        (one(), None, ["'x'", "NoneType None: nothing was loaded"]),
        (one(), Request(np.zeros((4, 7), np.float32)), ["'x'", "Request(float32[4, 7])", "stack.call takes a Request"]),
        (one(shape=("batch",)), 3.0, ["'x'", "float32[]", "float 3.0", "np.asarray(x, dtype='float32')"]),
        (one(), None, ["'x'", "float32[4, n]", "NoneType None"]),
        (one(), "x" * 100, ["'x'", "float32[4, n]", "str 'xxx", "..."]),
        (one(), np.ma.zeros((4, 7), np.float32), ["'x'", "float32[4, n]", "masked", "float32[4, 7]", ".filled()"]),
        (one(shape=("batch", None)), np.zeros((2, 2), np.float32), ["'x'", "float32[?]", "float32[2, 2]"]),
        (one(), {}, ["'x'", "float32[4, n]", "an empty mapping", "missing"]),
        (one(), {"y": INPUT}, ["'y'", "'x'", "no such input"]),
        (one(), {"x": [1.0]}, ["'x'", "float32[4, n]", "list [1.0]"]),
        (one(), MappingProxyType({"x": np.zeros(4, np.float32)}), ["'x'", "float32[4, n]", "float32[4]"]),
        (two(), INPUT, ["a mapping with 'input', 'state'", "float32[576]", "several inputs"]),
        (two(), {"input": INPUT}, ["'state'", "float32[2, 128]", "got only 'input'", "missing"]),
        (two(), {"input": INPUT, "status": STATE}, ["'status'", "'input', 'state'", "no such input"]),
        (two(), {"input": INPUT, "state": STATE, "h": STATE}, ["'h'", "'input', 'state'", "no such input"]),
        (two(), {"input": INPUT, "state": STATE, "sr": np.array(8)}, ["'sr'", "'input', 'state'", "batch shares it"]),
        (two(), {"input": INPUT, "state": STATE.T}, ["'state'", "float32[2, 128]", "float32[128, 2]", "axis 0"]),
        (two(), {"input": INPUT, "state": STATE[:, None]}, ["'state'", "float32[2, 1, 128]", "no batch axis"]),
        (one(shape=("batch", 3), non_finite="reject"), np.array([0, np.inf, np.nan], np.float32), ["'x'", "non_finite='reject'", "2 NaN or infinite", "(1,)"]),
        (one(shape=("batch",), non_finite="reject"), np.float32(np.nan), ["'x'", "1 NaN or infinite"]),
        (one(shape=("b", 1), dtype=np.complex64, non_finite="reject"), np.full(1, np.nan + 0j, np.complex64), ["'x'", "1 NaN"]),
        (two(non_finite="reject"), {"input": INPUT, "state": STATE - np.inf}, ["'state'", "256 NaN or infinite", "(0, 0)"]),
    ],
)  # fmt: skip
def test_mismatched_request_names_expected_and_actual(signature, inputs, parts):
    """The error for a request that does not match the model says what was expected and what was received."""
    with pytest.raises(errors.InvalidInput) as caught:
        signature.check(inputs)
    for part in parts:
        assert part in str(caught.value)


@given(
    shape=st.lists(st.one_of(st.integers(1, 3), st.none()), max_size=3),
    value=hnp.arrays(
        st.sampled_from([np.dtype(np.float32), np.dtype(np.float64), np.dtype(">f4")]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
        elements=st.sampled_from([0.0, 1.0, np.nan, -np.inf]),
    ),
    order=st.sampled_from("CF"),
    non_finite=st.sampled_from(["allow", "reject"]),
)
def test_the_fast_pass_agrees_with_the_definition(shape, value, order, non_finite):
    signature = one(shape=("batch", *shape), non_finite=non_finite)
    right = (
        value.dtype == F32
        and value.ndim == len(shape)
        and value.size > 0
        and all(size is None or size == came for size, came in zip(shape, value.shape, strict=True))
        and (non_finite == "allow" or bool(np.isfinite(value).all()))
    )
    try:
        signature.check(np.array(value, order=order))
    except errors.InvalidInput:
        assert not right
    else:
        assert right


def test_signature_attributes_for_the_batcher():
    assert dict(two().batch_axes) == {"input": 0, "state": 1}
    assert two().only_input is None
    assert one().only_input == "x"
    assert [one(shape=(size, 4)).rows_per_run for size in ("batch", 1, 8)] == [None, 1, 8]
    assert str(two().inputs[1]) == "state float32[2, batch, 128]"
    assert two().inputs[1].row_shape == (2, 128)
    assert two().inputs[2].row_shape == ()


SPEC = TensorSpec("sr", np.dtype(np.int64), (2, "n"), None)


@pytest.mark.parametrize(
    ("value", "error", "parts"),
    [
        (16000, TypeError, ["shared_inputs['sr']", "int64[2, n]", "16000"]),
        (np.zeros((2, 3), np.int32), ValueError, ["shared_inputs['sr']", "int64[2, n]", "int32[2, 3]"]),
        (np.zeros(2, np.int64), ValueError, ["shared_inputs['sr']", "int64[2, n]", "int64[2]"]),
        (np.zeros((3, 3), np.int64), ValueError, ["shared_inputs['sr']", "int64[2, n]", "int64[3, 3]"]),
    ],
)
def test_a_shared_input_that_does_not_fit_is_rejected(value, error, parts):
    with pytest.raises(error) as caught:
        check_value(SPEC, value)
    for part in parts:
        assert part in str(caught.value)


def test_a_shared_input_is_copied():
    value = np.ones((3, 2), np.int64).T
    copy = check_value(SPEC, value)
    value[:] = 5
    assert copy.flags.c_contiguous
    assert copy.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_guess_has_the_shape_of_a_request():
    """Guessed inputs lack the batch axis and the shared inputs, and their open axes have the requested size."""
    guess = guess_inputs(two().inputs, 5)

    assert {name: (value.shape, value.dtype) for name, value in guess.items()} == {
        "input": ((5,), F32),
        "state": ((2, 128), F32),
    }
    two().check(guess)
    assert free_axes(two().inputs) == {"input": (0,)}


def test_guess_is_for_numbers_only():
    """No inputs are guessed for text or for an input that is not a tensor, because neither has zeros."""
    for dtype in (np.dtype(object), None):
        assert guess_inputs([TensorSpec("x", dtype, ("batch", 4), 0)]) is None
