"""What a retry budget did, as a frozen snapshot."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration

__all__ = ["RetryStatistics"]


@attrs.frozen(kw_only=True)
class RetryStatistics(Snapshot):
    """Counters of a `RetryBudget` since it was made.

    Counting rule: each failed attempt led to a retry or is in exactly one entry of ``gave_up``.

    Attributes:
        name: the budget's.
        requests: requests, each counted once however often it was tried.
        retries: attempts beyond the first that were granted.
        recovered: requests that were answered at a later attempt.
        left: retries that may be made now; not whole, negative when requests left the window before their retries.
        usual_s: what a successful attempt takes, a running mean of the last sixteen or so, in seconds.
        gave_up: why failures were not retried: ``"attempts"``, ``"repeatable"``, ``"retryable"``, ``"time"``,
            ``"budget"``.
    """

    name: str
    requests: int
    retries: int
    recovered: int
    left: float
    usual_s: float
    gave_up: Mapping[str, int]

    def _repr_html_(self) -> str:
        rows = [
            ("requests", f"{self.requests:,}"),
            ("retries", f"{self.retries:,}"),
            ("recovered", f"{self.recovered:,}"),
            ("retries left", f"{self.left:.1f}"),
            ("an attempt takes", format_duration(self.usual_s)),
            *((f"not retried: {why}", f"{count:,}") for why, count in self.gave_up.items()),
        ]
        return html_table(rows, caption=self.name or "retry budget")
