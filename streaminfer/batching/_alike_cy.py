"""May these rows stand in one batch? One bad item must fail alone, so only rows of one kind are ever stacked.

Rows are alike when they are arrays of one dtype and shape, mappings with the same names and alike values, or plain
numbers or strings of one type. The dtype of an answer then never depends on who else was in the batch. O(n)
comparisons; runs once a request.
"""

from __future__ import annotations

from typing import Any

from numpy import ndarray

__all__ = ["alike", "all_alike"]


def alike(first: Any, other: Any) -> bool:
    """Whether two rows can be stacked."""
    kind = type(first)
    if type(other) is not kind:
        return False
    if kind is ndarray:
        return bool(first.dtype == other.dtype and first.shape == other.shape)
    if kind is dict:
        if len(first) != len(other):
            return False
        for name, value in first.items():
            if name not in other or not alike(value, other[name]):
                return False
    return True


def all_alike(rows: list[Any]) -> bool:
    """Whether all rows can be stacked with the first one."""
    first = rows[0]
    kind = type(first)
    simple = kind is not ndarray and kind is not dict
    for row in rows:
        if simple:
            if type(row) is not kind:
                return False
        elif row is not first and not alike(first, row):
            return False
    return True
