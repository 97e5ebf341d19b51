# cython: embedsignature=True, boundscheck=False, wraparound=False
"""Copies of small rows that keep the interpreter lock.

One source, compiled with the C types of ``_small_rows_cy.pxd`` or run as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = ["copy_small_rows"]


def copy_small_rows(
    source: Any,
    source_rows: Any,
    source_row: int,
    source_outer: int,
    target: Any,
    target_rows: Any,
    target_row: int,
    target_outer: int,
    outer: int,
    inner: int,
) -> None:
    """Copy some rows, as ``copies.copy_rows``; words are int64."""
    for position in range(source_rows.shape[0]):
        for run in range(outer):
            here = source_rows[position] * source_row + run * source_outer
            there = target_rows[position] * target_row + run * target_outer
            for word in range(inner):
                target[there + word] = source[here + word]
