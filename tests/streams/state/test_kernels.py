"""Copies of rows: the kernel, its NumPy twin, and NumPy's own indexing agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from streaminfer.streams.state._rows_cy import Rows, row_copies
from streaminfer.streams.state.kernels import copy_rows
from streaminfer.streams.state.layout import StateTensor

pytestmark = pytest.mark.uncompiled

DTYPES = [np.float32, np.float64, np.uint8, np.float16, np.int64, np.bool_, np.complex64]


def copy_rows_strided(source, rows, row, outer, target, target_rows, target_row, target_outer, runs, words):
    """Copy rows as the kernel does, but each of them as one strided view."""
    size = target.itemsize
    strides = (row * size, outer * size, size), (target_row * size, target_outer * size, size)
    read = as_strided(source, (max(rows) + 1, runs, words), strides[0], writeable=False)
    written = as_strided(target, (max(target_rows) + 1, runs, words), strides[1])
    written[target_rows] = read[rows]


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_rows_arrive_as_numpy_indexes_them(shape, dtype, data):
    """Rows of any shape, type and batch axis go from a batch to the arena and to another batch."""
    axis = data.draw(st.integers(0, len(shape)))
    tensor = StateTensor("s", "t", shape, np.dtype(dtype), axis, np.zeros(shape, dtype))
    rng = np.random.default_rng(7)
    batch = rng.integers(0, 2, (5, *shape)).astype(dtype)
    source = np.ascontiguousarray(np.moveaxis(batch, 0, axis))
    rows = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True))
    slots = data.draw(st.permutations(range(6)))[: len(rows)]
    arena = tensor.new_arena(6)
    arena[:] = 0

    tensor.in_arena(arena).copy_from(tensor.in_batch(source), rows, slots)
    target = np.zeros(tensor.batch_shape(len(rows)), dtype)
    tensor.in_batch(target).copy_from(tensor.in_arena(arena), slots, list(range(len(rows))))

    assert np.array_equal(target, np.take(source, rows, axis=axis))
    for row, slot in zip(rows, slots, strict=True):
        assert np.array_equal(tensor.row_in_arena(arena, slot), batch[row])
    tensor.row_of(target, 0)[...] = 1
    assert tensor.row_of(target, 0).all()


@given(
    seed=st.integers(0, 1000),
    outer=st.integers(1, 3),
    inner=st.integers(1, 4),
    word=st.sampled_from(["i8", "i4", "u1"]),
)
def test_kernels_equal_their_plain_twin(seed, outer, inner, word):
    """The copies of small and large rows, compiled or not, write the same as NumPy, and nothing else."""
    rng = np.random.default_rng(seed)
    count = 6
    source = rng.integers(0, 100, count * outer * inner).astype(word)
    rows, targets = rng.permutation(count)[:3], np.arange(3)
    small, large, uncompiled, plain = (np.full(count * outer * inner, 7, word) for _ in range(4))
    strides = outer * inner, inner
    target_strides = inner, count * inner

    here, there = (Rows(words, *s, outer, inner) for words, s in ((source, strides), (small, target_strides)))
    there.copy_from(here, rows.tolist(), targets.tolist())
    row_copies()[source.dtype](source, rows, *strides, large, targets, *target_strides, outer, inner)
    copy_rows(source, rows, *strides, uncompiled, targets, *target_strides, outer, inner)
    copy_rows_strided(source, rows, *strides, plain, targets, *target_strides, outer, inner)

    assert np.array_equal(small, plain)
    assert np.array_equal(large, plain)
    assert np.array_equal(uncompiled, plain)
    assert not np.array_equal(plain, np.full_like(plain, 7))


def test_nothing_is_copied_for_no_rows():
    """A copy of no rows changes nothing."""
    source, target = np.zeros(4, np.int64), np.ones(4, np.int64)
    none = np.empty(0, np.int64)

    copy_rows(source, none, 1, 1, target, none, 1, 1, 1, 1)
    row_copies()[source.dtype](source, none, 1, 1, target, none, 1, 1, 1, 1)
    Rows(target, 1, 1, 1, 1).copy_from(Rows(source, 1, 1, 1, 1), [], [])

    assert target.tolist() == [1, 1, 1, 1]


def test_rows_are_copied_from_read_only_outputs():
    """Rows can be copied from read-only arrays, such as the states of a batch, but not into them."""
    source = np.arange(6)
    source.flags.writeable = False
    target = np.zeros(6, np.int64)

    Rows(target, 2, 2, 1, 2).copy_from(Rows(source, 2, 2, 1, 2), [2, 0], [0, 1])

    assert target.tolist() == [4, 5, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        Rows(source, 2, 2, 1, 2).copy_from(Rows(target, 2, 2, 1, 2), [2], [0])
