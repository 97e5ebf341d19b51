"""Copies of rows: the kernel, its NumPy twin, and NumPy's own indexing agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams.state.copies import copy_rows, end_of, join
from streaminfer.streams.state.kernels import copy_rows_numpy
from streaminfer.streams.state.layout import StateTensor

pytestmark = pytest.mark.uncompiled

DTYPES = [np.float32, np.float64, np.uint8, np.float16, np.int64, np.bool_, np.complex64]


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
    rows = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)))
    slots = np.array(data.draw(st.permutations(range(6))))[: rows.size]
    arena = tensor.new_arena(6)
    arena[:] = 0

    tensor.copy(tensor.in_batch(source), rows, tensor.in_arena(arena), slots)
    target = np.zeros(tensor.batch_shape(rows.size), dtype)
    tensor.copy(tensor.in_arena(arena), slots, tensor.in_batch(target), np.arange(rows.size))

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
def test_kernel_equals_its_twin(seed, outer, inner, word):
    """The compiled kernel writes what the plain one writes, and nothing else."""
    rng = np.random.default_rng(seed)
    count = 6
    source = rng.integers(0, 100, count * outer * inner).astype(word)
    rows = rng.permutation(count)[:3]
    written = [np.full(count * outer * inner, 7, word) for _ in range(2)]

    for copy, target in zip((copy_rows, copy_rows_numpy), written, strict=True):
        copy(source, rows, outer * inner, inner, target, np.arange(3), inner, count * inner, outer, inner)

    assert np.array_equal(*written)
    assert not np.array_equal(written[0], np.full_like(written[0], 7))


def test_nothing_is_copied_for_no_rows():
    """No rows are no work."""
    target = np.ones(4, np.int64)
    none = np.empty(0, np.int64)

    copy_rows_numpy(np.zeros(4, np.int64), none, 1, 1, target, none, 1, 1, 1, 1)
    copy_rows(np.zeros(4, np.int64), none, 1, 1, target, none, 1, 1, 1, 1)

    assert target.tolist() == [1, 1, 1, 1]


@given(
    before=st.integers(0, 5),
    length=st.integers(1, 5),
    others=st.lists(st.integers(0, 4), min_size=1, max_size=2),
    axis=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_context_and_chunk_stand_behind_each_other(before, length, others, axis, dtype, seed):
    """Joined and cut as NumPy does it, for any axis, type and size."""
    axis = min(axis, len(others))
    rng = np.random.default_rng(seed)
    first, second = (
        rng.integers(0, 9, (*others[:axis], size, *others[axis:])).astype(dtype) for size in (before, length)
    )

    joined = join(first, second, axis)

    assert joined.dtype == np.dtype(dtype)
    assert np.array_equal(joined, np.concatenate((first, second), axis))
    end = end_of(joined, axis, before)
    assert np.array_equal(end, np.take(joined, range(length, before + length), axis))
    assert not np.shares_memory(end, joined)


def test_parts_that_do_not_fit_are_numpys_to_join_or_refuse():
    """Other types are converted, views are read as they are, and other sizes are an error."""
    before = np.arange(12, dtype=np.float32).reshape(3, 4)

    mixed = join(before, np.ones((3, 2), np.float64), 1)
    turned = join(before.T.copy().T, np.ones((3, 2), np.float32), 1)

    assert mixed.dtype == np.float64
    assert np.array_equal(mixed, turned)
    with pytest.raises(ValueError, match="dimension"):
        join(before, np.ones((2, 2), np.float32), 1)
