"""Stacking and splitting of rows: contiguous batches, and results that are not rows."""

import numpy as np

import streaminfer as si
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.assembly.unbatch import split_rows


def stack_rows(rows, batch_axes):
    """Return the rows stacked into one batch, without limits, padding or fixed sizes."""
    return Assembler(stack=True, batch_axes=batch_axes, max_batch_size=64).assemble(rows)


def test_bytes_are_not_rows_and_cause_is_kept():
    """A bytes result is not accepted as rows, and the error about unreadable rows keeps its cause."""
    assert isinstance(split_rows(b"ab", 2, "f"), si.BackendError)
    assert isinstance(split_rows(np.array(1.0), 1, "f").__cause__, TypeError)


def test_rows_stacked_on_an_inner_axis_are_contiguous():
    stacked = stack_rows([np.asfortranarray(np.arange(6.0).reshape(2, 3))] * 4, {"state": 1})
    assert stacked.shape == (2, 4, 3)
    assert stacked.flags.c_contiguous
    named = stack_rows([{"state": np.asfortranarray(np.arange(6.0).reshape(2, 3))}] * 4, {"state": 1})["state"]
    assert named.shape == (2, 4, 3)
    assert named.flags.c_contiguous
