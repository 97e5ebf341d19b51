"""Compatibility of rows: only rows of one kind share a batch, so that one bad row fails alone.

Rows are stackable if they are arrays of one dtype and shape, mappings with the same names and stackable values, or
plain numbers or strings of one type. The dtype of a response then never depends on the other rows of the batch. O(n)
comparisons; runs once per request.

`RaggedCompatibility` does the same for rows that are padded: their lengths along one axis may differ within a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from numpy import ndarray

__all__ = ["RaggedCompatibility", "kind_of", "take_stackable"]


def kind_of(row: Any) -> Any:
    """Return a hashable key that is equal for two rows exactly if they can be stacked."""
    kind = type(row)
    if kind is ndarray:
        dtype = row.dtype
        if dtype.hasobject and row.size and isinstance(row.item(0), bytes):
            return dtype, row.shape, bytes  # other arrays of this dtype hold strings
        return dtype, row.shape
    if kind is dict:
        return frozenset([(name, kind_of(value)) for name, value in row.items()])
    return kind


def take_stackable(tickets: list[Any], limit: int) -> list[Any]:
    """Return the first tickets, in their order, whose rows can be stacked with the first one's.

    Args:
        tickets: at least one; their ``inputs`` are the rows.
        limit: the most to take, at least 1.
    """
    first = tickets[0].inputs
    kind = kind_of(first)
    stackable = []
    for ticket in tickets:
        row = ticket.inputs
        if row is first or kind_of(row) == kind:
            stackable.append(ticket)
            if len(stackable) == limit:
                break
    return stackable


class RaggedCompatibility:
    """Compatibility of rows that are padded to the length of their bucket.

    Immutable; rows have passed ``Buckets.check``.

    Args:
        lengths: lengths of the buckets, ascending.
        axis: axis of the row along which lengths may differ; negative counts from the end.
        names: the ragged inputs of a mapping; ``None``: every array that has the axis.
    """

    def __init__(self, lengths: tuple[int, ...], axis: int, names: frozenset[str] | None) -> None:
        self.lengths = lengths
        self.axis = axis
        self.names = names

    def bucket_of(self, inputs: Any) -> int:
        """Return the position of the shortest bucket that fits a row; -1 if none fits, or nothing is ragged."""
        if type(inputs) is dict:
            for name, value in inputs.items():
                if self.names is None or name in self.names:
                    bucket = -1 if type(value) is dict else self.bucket_of(value)
                    if bucket >= 0:
                        return bucket
            return -1
        if type(inputs) is not ndarray:
            return -1
        shape = inputs.shape
        ndim = len(shape)
        if not -ndim <= self.axis < ndim:
            return -1
        bucket = bisect_left(self.lengths, shape[self.axis])
        return bucket if bucket < len(self.lengths) else -1

    def choose(self, tickets: list[Any], limit: int, shorter_too: bool) -> list[Any]:
        """Return the first tickets, in their order, whose rows can be padded and stacked with the first one's.

        Args:
            tickets: at least one; their ``inputs`` are the rows.
            limit: the most to take, at least 1.
            shorter_too: also take rows of shorter buckets than the first one's.
        """
        first = tickets[0].inputs
        bucket = self.bucket_of(first)
        kind = self.kind_of(first)
        chosen = []
        for ticket in tickets:
            row = ticket.inputs
            own = self.bucket_of(row)
            if own != bucket and not (shorter_too and 0 <= own < bucket):
                continue
            if row is first or self.kind_of(row) == kind:
                chosen.append(ticket)
                if len(chosen) == limit:
                    break
        return chosen

    def kind_of(self, row: Any) -> Any:
        """Return a hashable key that is equal for two rows of one bucket exactly if they can be stacked."""
        if type(row) is not dict:
            return self._kind_of(None, row)
        return frozenset([(name, self._kind_of(name, value)) for name, value in row.items()])

    def _kind_of(self, name: Any, value: Any) -> Any:
        if type(value) is not ndarray or not (name is None or self.names is None or name in self.names):
            return kind_of(value)
        shape = value.shape
        ndim = len(shape)
        if not -ndim <= self.axis < ndim:
            return value.dtype, shape
        axis = self.axis if self.axis >= 0 else self.axis + ndim
        return value.dtype, ndim, shape[:axis], shape[axis + 1 :]
