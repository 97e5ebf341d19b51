"""Frozen snapshot of a circuit breaker."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["COUNTED", "BreakerStatistics"]


@attrs.frozen(kw_only=True)
class BreakerStatistics(Snapshot):
    """State and counters of a `CircuitBreaker` at one moment.

    Counting rule: every permit is counted in ``permitted``, and when it comes back, in exactly one of ``succeeded``,
    ``failed``, ``ignored`` and ``stale_permits``. An outcome without a permit is counted in one of these four too. The
    counters never fall, except ``consecutive_trips``.

    Attributes:
        name: name of the breaker.
        state: ``"closed"``, ``"open"`` or ``"half_open"``.
        mode: ``"automatic"``, ``"metrics_only"``, ``"disabled"`` or ``"forced_open"``.
        calls: outcomes that the present state judges: those in the window or, while half open, those of the probes. An
            open circuit judges no outcomes; then these are the outcomes still in the window.
        failures: how many of them failed.
        slow: how many of them were slow.
        half_open_in_flight: probes with permits that have not come back.
        retry_after_s: seconds until a call may pass; 0.0 while all calls pass.
        share: share of the calls that pass while closed; below 1.0 for ``ramp_up_s`` after the probes closed it.
        permitted: permits given since the breaker was made.
        rejected: calls rejected.
        succeeded: outcomes that counted as success.
        failed: outcomes that counted as failure.
        slow_calls: how many of these outcomes were slow.
        ignored: permits that came back without an outcome (the call was cancelled, had an ignored error, or exceeded a
            deadline that was too short to prove anything), and outcomes while the breaker is disabled.
        stale_permits: permits and outcomes that came after their state had ended, or, while half open, twice; and
            outcomes without a permit while the breaker is open.
        trips: how often it opened, not counting `force_open`. If only time caused the change, ``state`` shows it, but
            the next call counts it and notifies the listeners.
        consecutive_trips: trips since it was last closed; each doubles the open time.
        events_lost: events that no listener got because one did not return from an earlier one.
    """

    name: str
    state: str
    mode: str
    calls: int
    failures: int
    slow: int
    half_open_in_flight: int
    retry_after_s: float
    share: float
    permitted: int
    rejected: int
    succeeded: int
    failed: int
    slow_calls: int
    ignored: int
    stale_permits: int
    trips: int
    consecutive_trips: int
    events_lost: int

    @property
    def failure_rate(self) -> float:
        """Share of ``calls`` that failed; NaN without any."""
        return self.failures / self.calls if self.calls else float("nan")

    @property
    def slow_rate(self) -> float:
        """Share of ``calls`` that were slow; NaN without any."""
        return self.slow / self.calls if self.calls else float("nan")


COUNTED = tuple(field.name for field in attrs.fields(BreakerStatistics) if field.type is int)
"""Counters of the state machine, in the order of its snapshot."""
