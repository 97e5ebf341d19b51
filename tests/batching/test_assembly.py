"""Only rows of one kind are stacked; what cannot be stacked fails for its caller alone."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streaminfer.batching._alike_cy import alike, all_alike
from streaminfer.batching.assembly import AssembledBatch, prepare, stack_rows
from streaminfer.errors import InvalidInput

pytestmark = pytest.mark.uncompiled

A = np.arange(6, dtype=np.float32)
KINDS = [
    1, 1.0, True, "a", b"a", 1j, A, A.astype(np.float64), A.reshape(2, 3), A.astype(">f4"),
    {"x": A}, {"y": A}, {"x": A, "y": A}, {"x": A[:3]}, {"x": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("first", range(len(KINDS)))
@pytest.mark.parametrize("second", range(len(KINDS)))
def test_kinds_are_told_apart(first, second, plain):
    twin = plain("batching._alike_cy")
    for function in (alike, twin.alike):
        assert function(KINDS[first], KINDS[second]) == (first == second)
    for function in (all_alike, twin.all_alike):
        assert function([KINDS[first], KINDS[first], KINDS[second]]) == (first == second)


def test_the_compiled_module_is_the_one_in_use():
    module = importlib.import_module("streaminfer.batching._alike_cy")
    import os

    assert module.__file__.endswith(".py") == (os.environ.get("STREAMINFER_DISABLE_COMPILED") == "1")


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(st.data(), hnp.scalar_dtypes(), shapes, st.integers(1, 5))
def test_stacking_is_numpys(data, dtype, shape, count):
    rows = [data.draw(hnp.arrays(dtype, shape)) for _ in range(count)]
    for axis in range(len(shape) + 1):
        stacked = stack_rows([{"x": row} for row in rows], {"x": axis})["x"]
        np.testing.assert_array_equal(stacked, np.stack(rows, axis=axis))
        assert stacked.flags.c_contiguous
        assert stacked.dtype.newbyteorder("=") == dtype.newbyteorder("=")
        assert not any(np.shares_memory(stacked, row) for row in rows)


def test_a_single_array_takes_the_axis_of_the_only_input():
    assert stack_rows([np.zeros((2, 3))] * 4, {"state": 1}).shape == (2, 4, 3)
    assert stack_rows([np.zeros((2, 3))] * 4, {}).shape == (4, 2, 3)


def test_numbers_and_strings_become_arrays():
    assert stack_rows([1, 2], {}).dtype == np.int64
    assert stack_rows([1.0, 2.5], {}).tolist() == [1.0, 2.5]
    assert stack_rows(["a", "long"], {}).tolist() == ["a", "long"]


@pytest.mark.parametrize(
    "inputs", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(12.0)[::2], np.broadcast_to(1.0, (3,))]
)
def test_read_only_and_non_contiguous_rows_are_copied(inputs):
    inputs.flags.writeable = False
    np.testing.assert_array_equal(stack_rows([prepare(inputs)] * 2, {}), np.stack([inputs] * 2))


def test_prepare_keeps_what_can_be_stacked():
    for inputs in (1, 2.5, "a", A):
        assert prepare(inputs) is inputs
    assert prepare([1, 2]).dtype == np.int64
    assert prepare(np.float32(3)).shape == ()
    assert prepare({"x": [1.0]})["x"].shape == (1,)


@pytest.mark.parametrize("inputs", [object(), [[1], [1, 2]], np.array([None]), {"x": object()}, None])
def test_what_cannot_be_stacked_is_refused(inputs):
    with pytest.raises(InvalidInput, match=r"inputs: expected a number, an array.*stack=False"):
        prepare(inputs)


def test_a_batch_is_put_together_once_at_the_first_reading():
    made = []
    batch = AssembledBatch(lambda: made.append(1) or "stacked", [1, 2], None, lambda: 77)
    assert (made, batch.assembled_ns, len(batch)) == ([], 0, 2)
    assert batch.inputs == batch.inputs == "stacked"
    assert (made, batch.assembled_ns) == ([1], 77)
