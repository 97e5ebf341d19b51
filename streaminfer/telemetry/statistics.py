"""What a service did so far, as frozen snapshots with histograms of their own."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.objectives.alerts import Alert

__all__ = ["SloStatistics", "TelemetryStatistics"]


@attrs.frozen(kw_only=True)
class SloStatistics(Snapshot):
    """How an objective stands.

    Counting rule: answers within ``threshold_s`` are good; later ones and errors are bad; what the caller did (invalid
    input, cancellation) is neither.

    Attributes:
        name: the objective.
        threshold_s: seconds within which an answer is good.
        objective: share of events that must be good.
        period_s: seconds over which the budget is counted.
        good: good events in the period.
        bad: bad events in the period, refusals included.
        refused: refusals in the period: `Overloaded` and `CircuitOpen`.
        ignored: outcomes since the beginning that were no events.
        budget_remaining: share of the period's budget that is left; may be negative.
        burn_rates: burn rate of each watched window, by its seconds, ascending.
        burning: what :meth:`SLO.burning` said.
        alerts: those that fired.
        callback_errors: how often a callback raised.
    """

    name: str
    threshold_s: float
    objective: float
    period_s: float
    good: int
    bad: int
    refused: int
    ignored: int
    budget_remaining: float
    burn_rates: Mapping[float, float]
    burning: bool
    alerts: tuple[Alert, ...]
    callback_errors: int

    @property
    def share_good(self) -> float:
        """Share of the period's events that were good; NaN without events."""
        events = self.good + self.bad
        return self.good / events if events else float("nan")

    def __repr__(self) -> str:
        firing = f"; {len(self.alerts)} alerts" if self.alerts else ""
        return (
            f"<SloStatistics {self.name!r}: {self.good} good, {self.bad} bad, "
            f"{self.budget_remaining:.1%} of the budget left{firing}>"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("objective", f"{self.objective:.6g} within {self.threshold_s:g} s"),
            ("good", f"{self.good:,}"),
            ("bad", f"{self.bad:,} ({self.refused:,} refused)"),
            ("budget left", f"{self.budget_remaining:.1%}"),
            ("burning", "yes" if self.burning else "no"),
            *((f"burn rate, {seconds:g} s", f"{rate:.3g}") for seconds, rate in self.burn_rates.items()),
            *((f"since {alert.since_ns} ns", str(alert)) for alert in self.alerts),
        ]
        return html_table(rows, caption=self.name)


@attrs.frozen(kw_only=True)
class TelemetryStatistics(Snapshot):
    """Latency, its parts and the outcomes of the requests of one service.

    Counting rule: every request that ended is counted once in ``outcomes``; only answers are in the histograms, and
    only answers that a batcher took part in are in those of the parts.

    Attributes:
        name: the service.
        in_flight: requests that have not ended yet.
        outcomes: how many requests ended how: ``"ok"``, ``"degraded"``, ``"cancelled"``, or the class name of their
            error.
        latency: from the call of the service to its answer.
        queued: waiting for a worker and for company.
        assembled: from the release of the batch until its inputs stood together, waiting for a thread included.
        inferred: the model.
        handed_back: from the model's answer until the caller had it.
        batch_sizes: how many answers came from batches of which size.
        server_parts: means, in seconds, of what the servers behind say of their own times, by part: they divide
            ``inferred``. A server counts the requests of all its clients, and since it was first asked; empty without a
            server that says any.
        slo: how its objective stands; ``None`` without one.
    """

    name: str
    in_flight: int
    outcomes: Mapping[str, int]
    latency: LatencyHistogram
    queued: LatencyHistogram
    assembled: LatencyHistogram
    inferred: LatencyHistogram
    handed_back: LatencyHistogram
    batch_sizes: Mapping[int, int]
    server_parts: Mapping[str, float] = attrs.field(factory=dict)
    slo: SloStatistics | None = None

    @property
    def requests(self) -> int:
        """Requests that ended."""
        return sum(self.outcomes.values())

    @property
    def answered(self) -> int:
        """Requests that got an answer, degraded ones included."""
        return self.latency.count

    @property
    def mean_batch_size(self) -> float:
        """Mean size of the batches that answered, each batch counted once; 0.0 before the first."""
        batches = sum(count / size for size, count in self.batch_sizes.items())
        return sum(self.batch_sizes.values()) / batches if batches else 0.0

    def share_on_time(self, threshold_s: float) -> float:
        """Share of all requests that ended with an answer within ``threshold_s``; refusals and errors are not on time.

        Args:
            threshold_s: seconds.

        Returns:
            A share from 0 to 1; NaN before the first request.
        """
        if not self.requests:
            return float("nan")
        return self.latency.share_within(threshold_s) * self.answered / self.requests if self.answered else 0.0

    def parts(self) -> Mapping[str, LatencyHistogram]:
        """The parts of the latency in the order in which they happen."""
        return {
            "queued": self.queued,
            "assembled": self.assembled,
            "inferred": self.inferred,
            "handed back": self.handed_back,
        }

    def __repr__(self) -> str:
        ended = ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.items()) or "nothing yet"
        return f"<TelemetryStatistics {self.name!r}: {ended}; latency {self.latency!r}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = [
            (name, f"{histogram.count:,}", *(f"{histogram.quantile(q) * 1e3:.3f}" for q in (0.5, 0.99, 0.999, 1.0)))
            for name, histogram in {"latency": self.latency, **self.parts()}.items()
        ]
        rows += [
            (name, "", f"mean {mean_s * 1e3:.3f}, of all its clients") for name, mean_s in self.server_parts.items()
        ]
        ended = ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.items())
        table = html_table(
            rows,
            head=("ms", "count", "p50", "p99", "p99.9", "max"),
            caption=f"{self.name}: {ended}; mean batch {self.mean_batch_size:.1f}",
        )
        return table if self.slo is None else table + self.slo._repr_html_()
