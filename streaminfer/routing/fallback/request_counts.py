"""Counters of a `FallbackRouter`, and the snapshot made of them."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streaminfer.routing.fallback._fast_path_cy import FastPath
from streaminfer.routing.fallback.route_state import RouteState

if TYPE_CHECKING:
    from streaminfer.routing.fallback.statistics import RouterStatistics

__all__ = ["RequestCounts"]


class RequestCounts:
    """Counts requests by outcome, but for those of the fast path, which counts its own.

    Attributes:
        requests: requests that came.
        degraded: degraded responses of routes.
        defaulted: default responses.
        failed: requests that ended with an error.
        cancelled: requests that their callers cancelled.
        deadline_misses: requests without a route's response by the deadline.
        reasons: responses that did not come from the best route, by the reason of the best one.
    """

    def __init__(self) -> None:
        self.requests = self.degraded = self.defaulted = self.failed = self.cancelled = self.deadline_misses = 0
        self.reasons: Counter[str] = Counter()

    def snapshot(self, states: Sequence[RouteState], fast_path: FastPath) -> "RouterStatistics":
        """Return the counters of requests and of routes at this moment."""
        from streaminfer.routing.fallback.statistics import RouterStatistics  # noqa: PLC0415 - serving does not need it

        requests = self.requests + fast_path.taken
        by_route = [state.succeeded for state in states]
        by_route[0] += fast_path.succeeded
        succeeded = sum(by_route)
        quality = sum(count * state.route.quality for count, state in zip(by_route, states, strict=True))
        responses = succeeded + self.defaulted
        return RouterStatistics(
            requests=requests,
            succeeded=succeeded,
            degraded=self.degraded + fast_path.degraded,
            defaulted=self.defaulted,
            failed=self.failed,
            cancelled=self.cancelled,
            in_flight=requests - responses - self.failed - self.cancelled,
            deadline_misses=self.deadline_misses,
            mean_quality=quality / responses if responses else float("nan"),
            cost=sum(count * (state.route.cost or 0.0) for count, state in zip(by_route, states, strict=True)),
            reasons={str(reason): count for reason, count in sorted(self.reasons.items())},
            routes=tuple(state.statistics(count) for count, state in zip(by_route, states, strict=True)),
        )
