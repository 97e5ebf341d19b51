"""Protocol of an observer of a batcher's batches, such as the cost meter."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["BatchObserver", "BatchWork"]


class BatchWork(NamedTuple):
    """Division of the duration of a batch among its rows.

    Attributes:
        setup_share: share of the duration that does not depend on the number of rows, from the learned service time.
        weights: work of each row, in any unit; ``None``: each row counts as 1.
        padding: work on padding, in the same unit: rows that fill a batch up, or the rest of a bucket.
    """

    setup_share: float = 0.0
    weights: Sequence[float] | None = None
    padding: float = 0.0


class BatchObserver(Protocol):
    """Observer that the batcher calls, on the event loop, when a batch begins or ends on a worker; must not block."""

    def begin(self, requests: list[Any], now_ns: int) -> Any:
        """Note that a batch begins; a pipelined batch begins when the previous one has ended.

        Args:
            requests: its rows; ``None`` for a row of a batch function without a stream.
            now_ns: the current instant.

        Returns:
            A token for :meth:`end`.
        """

    def end(self, token: Any, work: BatchWork, now_ns: int) -> None:
        """Note that a batch ended, with any outcome; called once."""
