"""Frozen snapshot of a hedge."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["HedgeStatistics"]


@attrs.frozen(kw_only=True)
class HedgeStatistics(Snapshot):
    """Counters of a `Hedge` since it was made.

    Counting rule: when the delay of a request that may be sent twice has passed, either an extra request is sent and
    counted in ``hedges``, or the request is counted in one of ``throttled``, ``rejected`` and ``infeasible``.

    Attributes:
        name: name of the hedge.
        requests: requests, not counting extra ones.
        hedges: extra requests.
        won: requests with a response from an extra request.
        throttled: extra requests that were not sent because the budget was spent.
        rejected: extra requests that were not sent because their service would reject them.
        infeasible: extra requests that were not sent because they would miss the deadline.
        cancelling: losing requests that were cancelled and have not ended yet.
        delay_s: seconds after which a request is hedged; ``None``: there are too few durations.
    """

    name: str
    requests: int
    hedges: int
    won: int
    throttled: int
    rejected: int
    infeasible: int
    cancelling: int
    delay_s: float | None

    @property
    def extra(self) -> float:
        """Extra requests per request; 0.0 without any."""
        return self.hedges / self.requests if self.requests else 0.0
