"""What a fallback router did so far, as a frozen snapshot."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.html_table import html_table
from streaminfer._internal.snapshot import Snapshot

__all__ = ["RouteStatistics", "RouterStatistics"]


@attrs.frozen(kw_only=True)
class RouteStatistics(Snapshot):
    """Counters of one route.

    Counting rule: each attempt is in exactly one of ``in_flight``, ``answered``, ``failed``, ``overdue``,
    ``turned_away`` and ``given_up``. ``skipped`` counts looks and not attempts.

    Attributes:
        name: of the route.
        quality: of an answer.
        share: the part of the traffic that it is offered now.
        closed: closed because the error budget burns.
        answered: answers that it gave to callers.
        late: how many of them came after the deadline.
        failed: ended with an error that counts against the route.
        overdue: given up by the router so that another route or the default still had time, or at the deadline.
        turned_away: refused after its ``admission`` had said yes, or ended by the caller's own invalid input.
        given_up: ended by the caller's cancellation or the stop of the router.
        in_flight: attempts now, probes included.
        skipped: how often it was passed over, by reason.
        probes: copies of requests sent to see whether it is still too slow.
        cuts: how often its share was cut.
        departures: how often it was cut from the whole traffic: one more is one more flap.
        latency_s: recent mean time of its good answers in seconds, exponentially weighted; 0.0 before the first.
    """

    name: str
    quality: float
    share: float
    closed: bool
    answered: int
    late: int
    failed: int
    overdue: int
    turned_away: int
    given_up: int
    in_flight: int
    skipped: Mapping[str, int]
    probes: int
    cuts: int
    departures: int
    latency_s: float


@attrs.frozen(kw_only=True)
class RouterStatistics(Snapshot):
    """Counters of a `FallbackRouter` since it was made.

    Counting rule: each request is in exactly one of ``in_flight``, ``answered``, ``defaulted``, ``failed`` and
    ``cancelled``.

    Attributes:
        requests: that came.
        answered: by a route.
        degraded: how many of these answers were marked as lesser ones.
        defaulted: got the default answer.
        failed: ended with an error.
        cancelled: given up by their caller.
        in_flight: now.
        missed: ended with no route's answer by the deadline, the default included.
        mean_quality: of the answers, a default one counting 0; NaN before the first.
        cost: of the answers of routes whose cost was given.
        reasons: how many answers came from another route than the best one, by the reason of the best one.
        routes: one :class:`RouteStatistics` for each, best first.
    """

    requests: int
    answered: int
    degraded: int
    defaulted: int
    failed: int
    cancelled: int
    in_flight: int
    missed: int
    mean_quality: float
    cost: float
    reasons: Mapping[str, int]
    routes: tuple[RouteStatistics, ...]

    def __getitem__(self, name: str) -> RouteStatistics:
        for route in self.routes:
            if route.name == name:
                return route
        raise KeyError(name)

    def _repr_html_(self) -> str:
        columns = ("route", "share", "answered", "late", "failed", "overdue", "in flight", "skipped")
        rows = []
        for route in self.routes:
            skipped = ", ".join(f"{reason} {count:,}" for reason, count in route.skipped.items())
            share = "burning" if route.closed else f"{route.share:.1%}"
            cells = (
                route.name, share, f"{route.answered:,}", f"{route.late:,}", f"{route.failed:,}",
                f"{route.overdue:,}", f"{route.in_flight:,}", skipped,
            )  # fmt: skip
            rows.append(cells)
        caption = (
            f"{self.requests:,} requests: {self.answered:,} answered ({self.degraded:,} degraded), "
            f"{self.defaulted:,} by default, {self.failed:,} failed; mean quality {self.mean_quality:.3f}"
        )
        return html_table(rows, head=columns, caption=caption)
