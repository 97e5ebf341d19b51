"""Kernels in every compiled form and their NumPy twins pad alike, and the kernels are used where they should be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer import _compiled_kernels
from streaminfer.batching.assembly import padding, padding_kernels
from streaminfer.batching.assembly.padding import fill_mask, fill_mask_numpy, mask_windows, pad_rows, pad_rows_numpy

KERNEL_DTYPES = [np.dtype(np.int32), np.dtype(np.int64)]
VARIANTS = [_compiled_kernels.load_variant(name) for name in _compiled_kernels.variants()]
PAD_ROWS = {
    dtype: [padding_kernels.pad_rows, *(variant.checked(f"pad_rows_{dtype}") for variant in VARIANTS)]
    for dtype in KERNEL_DTYPES
}
FILL_MASK = [padding_kernels.fill_mask, *(variant.checked("fill_mask") for variant in VARIANTS)]


def naive(rows, length, pad):
    return [[*row, *[pad] * (length - len(row))] for row in rows]


rows_of = st.lists(st.lists(st.integers(0, 100), max_size=12), min_size=1, max_size=9)


@given(rows_of, st.integers(12, 20), st.integers(0, 9), st.sampled_from(KERNEL_DTYPES))
def test_kernel_twin_and_definition_agree(rows, length, pad, dtype):
    arrays = [np.array(row, dtype) for row in rows]
    lengths = [len(row) for row in rows]
    expected = naive(rows, length, pad)
    by_numpy = np.full((len(rows), length), 77, dtype)
    pad_rows_numpy(arrays, lengths, 0, pad, by_numpy)
    assert by_numpy.tolist() == expected
    for kernel in PAD_ROWS[dtype]:
        by_kernel = np.full((len(rows), length), 77, dtype)
        kernel(np.concatenate(arrays), np.array(lengths), dtype.type(pad), by_kernel)
        assert by_kernel.tolist() == expected

    windows = mask_windows(length, np.dtype(np.int64))
    expected = naive([[1] * n for n in lengths], length, 0)
    assert fill_mask_numpy(lengths, windows).tolist() == expected
    for kernel in FILL_MASK:
        mask = np.full((len(rows), length), 77)
        kernel(np.array(lengths), mask)
        assert mask.tolist() == expected


@pytest.mark.parametrize("wide", [1, 4000], ids=["filled first", "only the rest filled"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_of_more_dimensions(axis, wide):
    rng = np.random.default_rng(0)
    lengths = [2, 5, 0, 7]
    shape = [2, 3, wide]
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
    mask = fill_mask([0, 2, 3], mask_windows(3, np.dtype(dtype)))
    assert mask.dtype == dtype
    assert mask.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    mask[0, 0] = 1  # the caller's own, and not a window into what all share
    assert fill_mask([0], mask_windows(3, np.dtype(dtype))).tolist() == [[0, 0, 0]]


@pytest.fixture
def calls(monkeypatch):
    """Calls of the kernels, by name, in the form that this process uses."""
    padding.load_kernels()
    loaded = padding._loaded
    made = []

    def recording(name, kernel):
        def record(*arguments):
            made.append(name)
            kernel(*arguments)

        return record

    pad_rows = {dtype: recording("pad_rows", kernel) for dtype, kernel in loaded.pad_rows.items()}
    fill_mask = recording("fill_mask", loaded.fill_mask)
    monkeypatch.setattr(padding, "_loaded", padding.PaddingKernels(pad_rows, fill_mask))
    return made


@pytest.mark.parametrize(
    ("dtype", "length", "used"),
    [
        (np.int64, 16, True),
        (np.int32, 256, True),
        (np.int64, 257, False),
        (np.float32, 16, False),
        (np.uint8, 16, False),
        (">i8", 16, True),
    ],
)
def test_kernels_pad_short_rows_of_compiled_dtypes(calls, dtype, length, used):
    for lengths in ([3, 5], [4]):
        rows = [np.arange(n).astype(dtype) for n in lengths]
        padded = np.full((len(rows), length), 77, np.dtype(dtype).newbyteorder("="))
        pad_rows(rows, lengths, 0, 9, padded)
        assert padded.tolist() == naive(map(range, lengths), length, 9)
    assert calls == ["pad_rows"] * 2 * used


def test_strided_targets_are_left_to_numpy(calls):
    padded = np.zeros((8, 2), np.int64)
    pad_rows([np.arange(3), np.arange(5)], [3, 5], 0, 9, padded.T)
    assert padded.T.tolist() == naive([range(3), range(5)], 8, 9)
    assert not calls


@pytest.mark.parametrize(
    ("count", "dtype", "used"), [(64, np.int64, True), (65, np.int64, False), (2, np.bool_, False)]
)
def test_kernels_fill_masks_that_are_not_large(calls, count, dtype, used):
    mask = fill_mask([3] * count, mask_windows(256, np.dtype(dtype)))
    assert mask.sum() == 3 * count
    assert calls == ["fill_mask"] * used


def test_without_kernels_numpy_pads(monkeypatch):
    monkeypatch.setattr(padding, "_looked", True)
    monkeypatch.setattr(padding, "_loaded", None)
    padded = np.empty((2, 4), np.int64)
    pad_rows([np.arange(1), np.arange(3)], [1, 3], 0, 7, padded)
    assert padded.tolist() == [[0, 7, 7, 7], [0, 1, 2, 7]]
    assert fill_mask([1, 3], mask_windows(4, np.dtype(np.int64))).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_numba_compiles_nothing_after_loading(monkeypatch):
    """Where Numba's form is in use, whatever rows come, its signatures stay those of the table."""
    monkeypatch.setattr(padding, "_loaded", None)
    monkeypatch.setattr(padding, "load_compiled", lambda: None)
    padding.load_kernels()
    before = len(padding_kernels.pad_rows.signatures), len(padding_kernels.fill_mask.signatures)
    for dtype in (np.int64, np.int32, np.float32, np.float64, np.uint8, np.bool_):
        for writable in (True, False):
            row = np.ones(3, dtype)
            row.flags.writeable = writable
            pad_rows([row, row[::2]], [3, 2], 0, 0, np.empty((2, 8), dtype))
            pad_rows([row], [3], 0, 0, np.empty((1, 8), dtype))
    fill_mask([1, 2], mask_windows(4, np.dtype(np.int64)))
    assert (len(padding_kernels.pad_rows.signatures), len(padding_kernels.fill_mask.signatures)) == before


def test_rows_of_another_dtype_than_their_target_are_left_to_numpy(calls):
    """A kernel that read float64 as int64 would write nonsense."""
    padded = np.zeros((1, 4), np.int64)
    pad_rows([np.array([1.5, 2.5])], [2], 0, 9, padded)
    assert padded.tolist() == [[1, 2, 9, 9]]
    assert not calls
