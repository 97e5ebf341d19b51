"""One mapping per row from the columns of several outputs; runs once per request.

Compiled with the C types of ``_named_rows_cy.pxd``, or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["named_rows"]


def named_rows(names: Sequence[str], columns: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """Return one mapping of name to value per row.

    Args:
        names: names of the columns.
        columns: one for each name; the first axis of each counts rows.
        count: how many rows each column has.

    Raises:
        ValueError: a column has another number of rows, or the numbers of names and columns differ.
    """
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        rows.append({})  # noqa: PERF401 - a comprehension has types of its own
    for name, column in zip(names, columns, strict=True):
        values = column if type(column) is list else list(column)
        if len(values) != count:
            raise ValueError(f"{name!r}: expected {count} rows, got {len(values)}")
        for position in range(count):
            row = rows[position]
            row[name] = values[position]
    return rows
