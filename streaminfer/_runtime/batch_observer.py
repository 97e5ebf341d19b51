"""Protocol of an object that is told of the batches of a batcher: the cost meter is one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["BatchObserver", "BatchWork"]


class BatchWork(NamedTuple):
    """How the duration of a batch divides among its rows.

    Attributes:
        setup_share: share of the duration that does not depend on the number of rows, by the learned service time.
        weights: work of each row, in any unit; ``None``: all cost the same, 1.
        padding: work on what no request brought, in the same unit: rows that fill a batch up, the rest of a bucket.
    """

    setup_share: float = 0.0
    weights: Sequence[float] | None = None
    padding: float = 0.0


class BatchObserver(Protocol):
    """Is told when batches begin and end on a worker, on the event loop; it returns at once."""

    def begin(self, requests: list[Any], now_ns: int) -> Any:
        """Note that a batch begins; a pipelined one when the batch before it has ended.

        Args:
            requests: its rows; ``None`` for what a batch function was given without a stream.
            now_ns: the present instant.

        Returns:
            What :meth:`end` is given.
        """

    def end(self, token: Any, work: BatchWork, now_ns: int) -> None:
        """Note that it ended, however it did; called once."""
