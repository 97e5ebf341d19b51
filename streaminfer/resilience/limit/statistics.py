"""What a concurrency limit learned and did, as a frozen snapshot."""

import attrs

from streaminfer._internal.html_table import counter_rows, html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration

__all__ = ["LimitStatistics"]


@attrs.frozen(kw_only=True)
class LimitStatistics(Snapshot):
    """State and counters of a `ConcurrencyLimit`, of one moment.

    Counting rule: each call that asked is in exactly one of ``waiting``, ``abandoned``, ``refused``, ``late``,
    ``in_flight``, ``answered``, ``timed_out``, ``overloaded`` and ``released``.

    Attributes:
        name: the limit's.
        adaptive: whether it learns.
        limit: the limit that it has learned, not rounded.
        allowed: how many calls may be under way now: the limit, or less during a probe or while an SLO burns.
        in_flight: how many are.
        waiting: how many calls wait for a place.
        abandoned: calls that were cancelled while they waited for a place.
        goal_s: seconds that a call should take at most, waiting included; 0.0 before the first decision.
        waited_s: mean wait of the last round in seconds; 0.0 where nothing tells it from service.
        service_s: mean service time of the last round in seconds, or the latency without load.
        rate_per_s: completions a second while busy; 0.0 before the first decision.
        retry_after_s: seconds in which what is under way is expected to be done.
        burning: whether the SLO burned at the last decision.
        refused: calls refused because there was no place.
        late: calls refused because they could not be on time.
        answered: calls that were answered.
        timed_out: calls that their deadline ended.
        overloaded: calls that what stands behind refused for want of a place.
        released: calls of which nothing was learned: they failed or were cancelled.
        stale: permits that came back and were not out.
        rounds: decisions made.
    """

    name: str
    adaptive: bool
    limit: float
    allowed: int
    in_flight: int
    waiting: int
    abandoned: int
    goal_s: float
    waited_s: float
    service_s: float
    rate_per_s: float
    retry_after_s: float
    burning: bool
    refused: int
    late: int
    answered: int
    timed_out: int
    overloaded: int
    released: int
    stale: int
    rounds: int

    def _repr_html_(self) -> str:
        kind = "adaptive" if self.adaptive else "fixed"
        counters = (
            "refused",
            "late",
            "abandoned",
            "answered",
            "timed_out",
            "overloaded",
            "released",
            "stale",
            "rounds",
        )
        rows = [
            ("limit", f"{self.limit:.1f} ({kind}{', SLO burning' if self.burning else ''})"),
            ("under way", f"{self.in_flight} of {self.allowed}"),
            ("waiting", f"{self.waiting:,}"),
            ("waited + served", f"{format_duration(self.waited_s)} + {format_duration(self.service_s)}"),
            ("goal", format_duration(self.goal_s)),
            ("rate", f"{self.rate_per_s:,.1f} / s"),
            ("ask again in", f"{self.retry_after_s:.3f} s"),
            *counter_rows(self, counters),
        ]
        return html_table(rows, caption=self.name or "concurrency limit")
