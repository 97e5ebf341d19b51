"""Callers that send their next request as soon as their batch ends, as in a closed loop."""

__all__ = ["ReturningCallers"]

_NEWEST_WEIGHT = 0.1
"""Weight of the newest batch in the mean."""
_FEW = 0.25
"""Share of callers that return, below which the batcher does not wait for them."""
_SPLIT_NS = 1_000_000_000
"""Time for which a session counts as present after it read the next batch."""


class ReturningCallers:
    """How many of a batch's callers send another request at once.

    Attributes:
        share: the mean over recent batches; 1 at first.
    """

    __slots__ = ("_split_ns", "share")

    def __init__(self) -> None:
        self.share = 1.0
        self._split_ns: int | None = None

    @property
    def are_few(self) -> bool:
        """Whether so few return that the batcher need not wait for them."""
        return self.share < _FEW

    def record(self, share: float) -> None:
        """Record the share of a batch's callers that returned; arrivals of others can raise it above 1."""
        self.share += _NEWEST_WEIGHT * (min(share, 1.0) - self.share)

    def record_split(self, now_ns: int) -> None:
        """Record that a session read the next batch, to split its frames among the workers."""
        self._split_ns = now_ns

    def sharing_workers(self, free: int, now_ns: int) -> int:
        """Return how many of the free workers may share the queue: one if a session splits its frames itself."""
        is_split = self._split_ns is not None and now_ns - self._split_ns < _SPLIT_NS
        return 1 if is_split else free
