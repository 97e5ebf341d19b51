"""Frozen snapshot of a retry budget."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["RetryStatistics"]


@attrs.frozen(kw_only=True)
class RetryStatistics(Snapshot):
    """Counters of a `RetryBudget` since it was made.

    Counting rule: each failed attempt led to a retry or is in exactly one entry of ``not_retried``.

    Attributes:
        name: name of the budget.
        requests: requests, each counted once for any number of attempts.
        retries: attempts beyond the first that were granted.
        succeeded_after_retry: requests with a response from a later attempt.
        left: retries that may be made now: a fraction, negative if requests left the window before their retries.
        usual_s: duration of a successful attempt, a running mean of the last sixteen or so, in seconds.
        not_retried: failures that were not retried, by reason: ``"attempts"``, ``"repeatable"``, ``"retryable"``,
            ``"time"`` and ``"throttled"`` (the budget is spent).
    """

    name: str
    requests: int
    retries: int
    succeeded_after_retry: int
    left: float
    usual_s: float
    not_retried: Mapping[str, int]
