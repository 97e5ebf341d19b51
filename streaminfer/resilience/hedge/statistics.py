"""Frozen snapshot of a hedge."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["HedgeStatistics"]


@attrs.frozen(kw_only=True)
class HedgeStatistics(Snapshot):
    """Counters of a `Hedge` since it was made.

    Counting rule: each time the delay of a request that may be sent twice passed, an extra one was sent and counted in
    ``hedges``, or counted in one of ``throttled``, ``rejected`` and ``infeasible``.

    Attributes:
        name: the hedge's.
        requests: requests, extra ones not included.
        hedges: extra requests.
        won: requests whose response came from an extra one.
        throttled: extra requests that were not sent because the budget was spent.
        rejected: extra requests that were not sent because their service would reject them.
        infeasible: extra requests that were not sent because they would miss the deadline.
        cancelling: losing requests that were cancelled and have not ended yet.
        delay_s: seconds after which a request is hedged; ``None``: too little is known.
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
