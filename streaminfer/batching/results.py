"""What a batch came to, row by row; an impossible answer is an error of that batch.

Rows of an array are handed out as views. That is safe though batches are written into reused buffers: a function that
answers with its input, or with a part of it, gives out views of the buffer, and a buffer that anything refers to is not
written again (:mod:`~streaminfer.batching.buffers`). A caller who keeps a small row keeps the batch's whole answer in
memory; who stores answers for long copies them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from streaminfer.errors import BackendError

__all__ = ["PLAIN", "read_rows"]

PLAIN = (list, np.ndarray, tuple)
"""Results whose rows can be read without a closer look."""


def _is_sequence(results: Any) -> bool:
    return hasattr(results, "__len__") and hasattr(results, "__getitem__")  # a set has no order


def read_rows(results: Any, count: int, source: str, padded: int = 0) -> list[Any] | BackendError:
    """The results as a list.

    Args:
        results: what a backend or function returned: a sequence, or an array with a leading batch axis.
        count: how many rows the batch had.
        source: who answered, for the message.
        padded: how many rows the model was given, where the batch was filled up to a preferred size: the answers to
            copies are dropped, or were by a backend that looked at ``batch.rows``.

    Returns:
        As many results as rows; a :class:`~streaminfer.BackendError` that says what is wrong where that cannot be.
    """
    kind = type(results)
    if kind not in PLAIN and (isinstance(results, (str, bytes, Mapping)) or not _is_sequence(results)):
        return BackendError(f"{source}: expected a sequence of {count} results, one per row, got {kind.__name__}")
    try:
        # iterating over an array of one row costs more than reading that row
        rows = results if kind is list else [results[0]] if count == len(results) == 1 else list(results)
    except Exception as error:  # noqa: BLE001 - an array without axes, or a sequence that fails
        failure = BackendError(f"{source}: the results cannot be read one by one: {error}")
        failure.__cause__ = error
        return failure
    if padded and len(rows) == padded:
        return rows[:count]
    if len(rows) != count:
        return BackendError(f"{source}: expected {count} results, one per row, got {len(rows)}")
    return rows
