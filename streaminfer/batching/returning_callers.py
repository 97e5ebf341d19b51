"""How many callers of a batch send another request as soon as they have a response.

*Idea.* Callers in a loop do, so the batch behind theirs is fuller if it waits until they have woken. Where requests
come from elsewhere, the worker would idle meanwhile: for 32 callers that each write a response, longer than many a
batch takes. So the requests that come while the callers of a batch wake are counted, and the mean over recent batches
tells whether it is worth the wait. It begins with callers that all come back.

*Complexity.* One callback of the loop for each batch that ends while requests are queued.
"""

__all__ = ["ReturningCallers"]

_FEW = 0.25
_NEWEST = 0.1
"""Weight of a batch in the mean."""


class ReturningCallers:
    """Counts the callers of one queue that come back at once.

    Synchronous, not thread-safe.

    Attributes:
        share: of the callers of a batch, a mean over recent batches.
    """

    __slots__ = ("share",)

    def __init__(self) -> None:
        self.share = 1.0

    @property
    def are_few(self) -> bool:
        """Whether what is queued should not wait for them."""
        return self.share < _FEW

    def count(self, callers: int, came: int) -> None:
        """Count the requests that came while the callers of a batch woke.

        Args:
            callers: of the batch, at least one.
            came: requests.
        """
        self.share += _NEWEST * (min(came / callers, 1.0) - self.share)

    def __repr__(self) -> str:
        return f"ReturningCallers({self.share:.0%})"
