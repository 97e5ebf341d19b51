"""What a hedge did, as a frozen snapshot."""

import attrs

from streaminfer._internal.html_table import counter_rows, html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration

__all__ = ["HedgeStatistics"]


@attrs.frozen(kw_only=True)
class HedgeStatistics(Snapshot):
    """Counters of a `Hedge` since it was made.

    Counting rule: each time a request was late, an extra one was sent, or the reason why not is counted in one of
    ``over_cap``, ``not_admitted`` and ``no_time``.

    Attributes:
        name: the hedge's.
        requests: requests, extra ones not included.
        hedges: extra requests.
        won: requests that an extra one answered.
        over_cap: extra requests not sent since the traffic had not paid for them.
        not_admitted: extra requests not sent since who would get them refuses.
        no_time: extra requests not sent since they would have been late.
        losers: cancelled requests that have not ended yet.
        delay_s: seconds after which a request is hedged; ``None``: too little is known.
    """

    name: str
    requests: int
    hedges: int
    won: int
    over_cap: int
    not_admitted: int
    no_time: int
    losers: int
    delay_s: float | None

    @property
    def extra(self) -> float:
        """Extra requests per request; 0.0 without any."""
        return self.hedges / self.requests if self.requests else 0.0

    def _repr_html_(self) -> str:
        counters = ("requests", "hedges", "won", "over_cap", "not_admitted", "no_time", "losers")
        delay = "unknown yet" if self.delay_s is None else format_duration(self.delay_s)
        rows = [
            ("delay", delay),
            ("extra load", f"{self.extra:.2%}"),
            *counter_rows(self, counters),
        ]
        return html_table(rows, caption=self.name or "hedge")
