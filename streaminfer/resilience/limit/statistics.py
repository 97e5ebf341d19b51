"""Frozen snapshot of a concurrency limit."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["COUNTED", "LimitStatistics"]

COUNTED = ("rejected", "infeasible", "succeeded", "deadline_exceeded", "inner_rejected", "ignored", "stale_permits")
"""Counters of the state machine."""


@attrs.frozen(kw_only=True)
class LimitStatistics(Snapshot):
    """State and counters of a `ConcurrencyLimit` at one moment.

    Counting rule: each call is in exactly one of ``queued``, ``cancelled``, ``rejected``, ``infeasible``,
    ``in_flight``, ``succeeded``, ``deadline_exceeded``, ``inner_rejected`` and ``ignored``.

    Attributes:
        name: name of the limit.
        adaptive: whether the limit is learned.
        limit: the learned or fixed limit, not rounded.
        allowed: how many calls may be in flight now: the limit, or less during a probe or while an SLO burns.
        in_flight: calls in flight.
        queued: calls that wait for a permit.
        cancelled: calls that were cancelled while they were queued.
        target_s: seconds that a call should take at most, including queueing; 0.0 before the first decision.
        queue_delay_s: mean seconds queued in the last window; 0.0 if timings do not separate it from service.
        service_s: mean service time of the last window in seconds, or the latency without load.
        rate_per_s: completions a second while busy; 0.0 before the first decision.
        retry_after_s: seconds in which the calls in flight should complete.
        burning: whether the SLO burned at the last decision.
        rejected: calls that the limit rejected.
        infeasible: calls that were rejected because they would miss their deadline.
        succeeded: calls that succeeded.
        deadline_exceeded: calls that exceeded their deadline.
        inner_rejected: calls that an inner layer rejected.
        ignored: calls from which the limit learned nothing: they failed or were cancelled.
        stale_permits: permits that came back although they were not out.
        windows: decisions made.
    """

    name: str
    adaptive: bool
    limit: float
    allowed: int
    in_flight: int
    queued: int
    cancelled: int
    target_s: float
    queue_delay_s: float
    service_s: float
    rate_per_s: float
    retry_after_s: float
    burning: bool
    rejected: int
    infeasible: int
    succeeded: int
    deadline_exceeded: int
    inner_rejected: int
    ignored: int
    stale_permits: int
    windows: int
