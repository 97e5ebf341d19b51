"""Padding of ragged rows, and masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.assembly.padding import make_mask, pad_rows


def naive(rows, length, pad):
    return [[*row, *[pad] * (length - len(row))] for row in rows]


rows_of = st.lists(st.lists(st.integers(0, 100), max_size=12), min_size=1, max_size=9)


@given(rows_of, st.integers(12, 20), st.integers(0, 9), st.sampled_from([np.int32, np.int64, np.float32]))
def test_padding_and_mask_match_a_plain_reference(rows, length, pad, dtype):
    lengths = [len(row) for row in rows]
    padded = np.full((len(rows), length), 77, dtype)
    pad_rows([np.array(row, dtype) for row in rows], lengths, 0, pad, padded)
    assert padded.tolist() == naive(rows, length, pad)
    assert make_mask(lengths, length, np.dtype(np.int64)).tolist() == naive([[1] * n for n in lengths], length, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_of_more_dimensions(axis):
    rng = np.random.default_rng(0)
    lengths = [2, 5, 0, 7]
    shape = [2, 3, 4]
    rows = [rng.random((*shape[:axis], n, *shape[axis + 1 :])) for n in lengths]
    shape[axis] = 7
    padded = np.full((4, *shape), np.nan)
    pad_rows(rows, lengths, axis, -1.0, padded)
    for row, length, whole in zip(rows, lengths, padded, strict=True):
        real, rest = np.split(whole, [length], axis=axis)
        np.testing.assert_array_equal(real, row)
        assert (rest == -1.0).all()


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.float32])
def test_masks_of_any_dtype(dtype):
    mask = make_mask([0, 2, 3], 3, np.dtype(dtype))
    assert mask.dtype == dtype
    assert mask.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_strided_targets_and_other_dtypes():
    padded = np.zeros((8, 2), np.int64)
    pad_rows([np.arange(3), np.arange(5).astype(">i8")], [3, 5], 0, 9, padded.T)
    assert padded.T.tolist() == naive([range(3), range(5)], 8, 9)
    padded = np.zeros((1, 4), np.int64)
    pad_rows([np.array([1.5, 2.5])], [2], 0, 9, padded)
    assert padded.tolist() == [[1, 2, 9, 9]]
