"""Counters of a `FallbackRouter`, and the snapshot made of them."""

from collections import Counter
from collections.abc import Sequence

from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.route_state import RouteState
from streaminfer.routing.fallback.statistics import RouterStatistics

__all__ = ["RequestCounts"]


class RequestCounts:
    """Counts requests by outcome; the fast path counts its own requests, and each route its responses.

    Attributes:
        requests: requests that came.
        defaulted: default responses.
        failed: requests that ended with an error.
        cancelled: requests that their callers cancelled.
        deadline_misses: requests without a route's response by the deadline.
        reasons: responses that did not come from the best route, by the reason why the best route gave none.
    """

    def __init__(self) -> None:
        self.requests = self.defaulted = self.failed = self.cancelled = self.deadline_misses = 0
        self.reasons: Counter[str] = Counter()

    def snapshot(self, states: Sequence[RouteState], fast_path: FastPath) -> RouterStatistics:
        """Return the counters of requests and of routes at this moment."""
        requests = self.requests + fast_path.requests
        succeeded = sum(state.share.succeeded for state in states)
        quality = sum(state.share.succeeded * state.route.quality for state in states)
        responses = succeeded + self.defaulted
        return RouterStatistics(
            requests=requests,
            succeeded=succeeded,
            degraded=sum(state.share.degraded for state in states),
            defaulted=self.defaulted,
            failed=self.failed,
            cancelled=self.cancelled,
            in_flight=requests - responses - self.failed - self.cancelled,
            deadline_misses=self.deadline_misses,
            mean_quality=quality / responses if responses else float("nan"),
            cost=sum(state.share.succeeded * (state.route.cost or 0.0) for state in states),
            reasons={str(reason): count for reason, count in sorted(self.reasons.items())},
            routes=tuple(state.statistics() for state in states),
        )
