"""The request, its answer, and a batch of requests: what travels between services, primitives and backends."""

from collections.abc import Sequence
from typing import Any

from streaminfer._request_cy import Request, Response, Timings

__all__ = ["Batch", "Request", "Response", "Timings"]


class Batch:
    """Several requests that a backend answers at once; one worker has it at a time.

    Args:
        inputs: one array with the batch axis, a mapping of input name to such arrays, or, from a batcher with
            ``stack=False``, a list of what each request brought.
        rows: the requests, in the order of the rows.
        deadline_ns: the latest deadline of the rows; ``None`` where a row has none.
    """

    __slots__ = ("deadline_ns", "inputs", "rows")

    inputs: Any

    def __init__(self, inputs: Any, rows: Sequence[Request], deadline_ns: int | None = None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline_ns = deadline_ns

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} rows, deadline_ns={self.deadline_ns})"
