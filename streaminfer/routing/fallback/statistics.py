"""Frozen snapshots of a fallback router's counters."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["RouteStatistics", "RouterStatistics"]


@attrs.frozen(kw_only=True)
class RouteStatistics(Snapshot):
    """Counters of one route.

    Counting rule: each attempt is in exactly one of ``in_flight``, ``succeeded``, ``failed``, ``attempt_timeouts``,
    ``rejected`` and ``cancelled``. ``skipped`` counts decisions and not attempts.

    Attributes:
        name: name of the route.
        quality: quality of a response.
        share: the part of the traffic that the route is offered now.
        closed: the route is offered nothing, because the error budget burns.
        succeeded: responses.
        deadline_misses: how many of them came after the deadline.
        failed: attempts that ended with an error that counts against the route.
        attempt_timeouts: attempts that the router cancelled, at the deadline or to leave time for a later route.
        rejected: attempts that the route rejected after its ``admission`` had accepted them, and invalid inputs.
        cancelled: attempts that ended with their caller's cancellation or the stop of the router.
        in_flight: attempts now, including probes.
        skipped: how often the route gave no response, by reason.
        probes: copies of requests that were sent to find out whether the route is still too slow.
        cuts: how often its share was cut.
        flaps: how often its share was cut from the whole traffic.
        latency_s: recent mean time of good responses in seconds, exponentially weighted; 0.0 before the first.
    """

    name: str
    quality: float
    share: float
    closed: bool
    succeeded: int
    deadline_misses: int
    failed: int
    attempt_timeouts: int
    rejected: int
    cancelled: int
    in_flight: int
    skipped: Mapping[str, int]
    probes: int
    cuts: int
    flaps: int
    latency_s: float


@attrs.frozen(kw_only=True)
class RouterStatistics(Snapshot):
    """Counters of a `FallbackRouter` since it was made.

    Counting rule: each request is in exactly one of ``in_flight``, ``succeeded``, ``defaulted``, ``failed`` and
    ``cancelled``.

    Attributes:
        requests: requests that came.
        succeeded: requests to which a route responded.
        degraded: how many of these responses were degraded.
        defaulted: requests that got the default response.
        failed: requests that ended with an error.
        cancelled: requests that their callers cancelled.
        in_flight: requests that have not ended.
        deadline_misses: requests without a route's response by the deadline, including those that got the default.
        mean_quality: mean quality of the responses; a default counts 0. NaN before the first response.
        cost: total cost of the responses of routes with a given cost.
        reasons: responses that did not come from the best route, by the reason why the best route gave none.
        routes: one :class:`RouteStatistics` for each, best first.
    """

    requests: int
    succeeded: int
    degraded: int
    defaulted: int
    failed: int
    cancelled: int
    in_flight: int
    deadline_misses: int
    mean_quality: float
    cost: float
    reasons: Mapping[str, int]
    routes: tuple[RouteStatistics, ...]

    def __getitem__(self, name: str) -> RouteStatistics:
        return {route.name: route for route in self.routes}[name]
