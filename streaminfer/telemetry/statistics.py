"""Statistics of a service and of its objective: frozen snapshots with copies of the histograms."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, get_args

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_instance
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.objectives.alerts import Alert, Severity

__all__ = ["HISTOGRAMS", "PARTS", "LabeledStatistics", "SloStatistics", "TelemetryStatistics", "read_responses"]

K = TypeVar("K")

PARTS = ("queue", "assembly", "inference", "delivery")
"""Parts of the latency of a request that a batcher served, in order."""

HISTOGRAMS = ("latency", *PARTS)
"""Names of the histograms of a telemetry."""


@attrs.frozen(kw_only=True)
class SloStatistics(Snapshot):
    """State of an objective.

    Counting rule: responses within ``threshold_s`` are good; later ones and errors are bad; the caller's own outcomes
    (invalid input, cancellation, a deadline shorter than any good response took) are neither.

    Attributes:
        name: name of the objective.
        threshold_s: seconds within which a response is good.
        objective: share of events that must be good.
        period_s: seconds over which the budget is counted.
        good: good events in the period.
        bad: bad events in the period, rejections included.
        rejected: rejections in the period: `Overloaded` and `CircuitOpen`.
        ignored: outcomes since the start that were not events.
        budget_remaining: share of the period's budget that is left; may be negative.
        burn_rates: burn rate of each watched window, by its seconds, ascending.
        burning: the result of :meth:`SLO.burning`.
        alerts: alerts that fire.
        callback_errors: exceptions that callbacks raised.
        totals: events since the start: ``"good"``, and bad events by kind: ``"late"``, ``"failed"``, ``"rejected"``.
    """

    name: str
    threshold_s: float
    objective: float
    period_s: float
    good: int
    bad: int
    rejected: int
    ignored: int
    budget_remaining: float
    burn_rates: Mapping[float, float]
    burning: bool
    alerts: tuple[Alert, ...]
    callback_errors: int
    totals: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def firing(self) -> Mapping[str, int]:
        """Number of alerts that fire, by severity."""
        severities = [alert.severity for alert in self.alerts]
        return {severity: severities.count(severity) for severity in get_args(Severity)}

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
            ("objective", f"{self.objective:.6g} within {format_duration(self.threshold_s)}"),
            ("good", f"{self.good:,}"),
            ("bad", f"{self.bad:,} ({self.rejected:,} rejected)"),
            ("budget left", f"{self.budget_remaining:.1%}"),
            ("burning", "yes" if self.burning else "no"),
            *((f"burn rate, {format_duration(seconds)}", f"{rate:.3g}") for seconds, rate in self.burn_rates.items()),
            *((f"since {alert.since_ns} ns", str(alert)) for alert in self.alerts),
        ]
        return html_table(rows, caption=self.name)


@attrs.frozen(kw_only=True)
class LabeledStatistics(Snapshot):
    """Latency and outcomes of the requests with one set of labels.

    Attributes:
        labels: pairs of name and value; all values are ``"other"`` for sets beyond the bound. The tenant is ``""``
            for a request without one, and the route is ``""`` for a request without a response.
        outcomes: completed requests by outcome, as in `TelemetryStatistics`.
        latency: latency of the responses, with two significant digits.
    """

    labels: tuple[tuple[str, str], ...]
    outcomes: Mapping[str, int]
    latency: LatencyHistogram

    @property
    def requests(self) -> int:
        """Completed requests."""
        return sum(self.outcomes.values())

    def since(self, earlier: "LabeledStatistics | None") -> "LabeledStatistics":
        """Return the statistics of requests recorded after ``earlier``; ``None``: of all requests."""
        if earlier is None:
            return self
        outcomes = _differences(self.outcomes, earlier.outcomes)
        return attrs.evolve(self, outcomes=outcomes, latency=self.latency.since(earlier.latency))


@attrs.frozen(kw_only=True)
class TelemetryStatistics(Snapshot):
    """Latency, its parts and the outcomes of the requests of one service.

    Counting rule: every request that reaches the telemetry and completes is counted once in ``outcomes``. Only
    responses are in the histograms, and only responses of a batcher are in the histograms of the parts. A call that
    waits for room in the queue (``wait=True``, ``map``, ``rows``) reaches the telemetry after the wait. A call with a
    wrong setting never reaches it.

    Attributes:
        name: name of the service.
        in_flight: requests that have not completed.
        outcomes: completed requests by outcome: ``"ok"``, ``"degraded"``, ``"cancelled"``, or the class name of their
            error.
        latency: time from the call of the service to its response.
        queue: time in the queue, until the batch is released to a worker.
        assembly: time from the release of the batch until its inputs are assembled, including the wait for a thread.
        inference: time of the model.
        delivery: time from the model's return until the caller has the response.
        batch_sizes: responses by the size of their batch.
        recent: latency of a recent window, such as the last minute; ``None`` without a rolling histogram.
        server_parts: mean seconds inside the model servers, by part; the parts divide ``inference``. A server counts
            the requests of all its clients since it was first read. Empty if no server has statistics.
        slo: state of the objective; ``None`` without one.
        labeled: latency and outcomes by labels, in the order in which the label values first appeared.
    """

    name: str
    in_flight: int
    outcomes: Mapping[str, int]
    latency: LatencyHistogram
    queue: LatencyHistogram
    assembly: LatencyHistogram
    inference: LatencyHistogram
    delivery: LatencyHistogram
    batch_sizes: Mapping[int, int]
    recent: LatencyHistogram | None = None
    server_parts: Mapping[str, float] = attrs.field(factory=dict)
    slo: SloStatistics | None = None
    labeled: tuple[LabeledStatistics, ...] = ()

    def since(self, earlier: "TelemetryStatistics") -> "TelemetryStatistics":
        """Return the statistics after ``earlier``, a snapshot of the same service without a reset in between."""
        check_instance("earlier", earlier, TelemetryStatistics, "earlier TelemetryStatistics")
        before = {each.labels: each for each in earlier.labeled}
        labeled = [each.since(before.get(each.labels)) for each in self.labeled]
        histograms: dict[str, Any] = {name: getattr(self, name).since(getattr(earlier, name)) for name in HISTOGRAMS}
        return attrs.evolve(
            self,
            labeled=tuple(each for each in labeled if each.requests),
            outcomes=_differences(self.outcomes, earlier.outcomes),
            batch_sizes=_differences(self.batch_sizes, earlier.batch_sizes),
            **histograms,
        )

    @property
    def requests(self) -> int:
        """Completed requests."""
        return sum(self.outcomes.values())

    @property
    def succeeded(self) -> int:
        """Requests that got a response, degraded ones included."""
        return self.latency.count

    @property
    def mean_batch_size(self) -> float:
        """Mean size of the batches that succeeded, each batch counted once; 0.0 before the first."""
        batches = sum(count / size for size, count in self.batch_sizes.items())
        return sum(self.batch_sizes.values()) / batches if batches else 0.0

    def share_on_time(self, threshold_s: float) -> float:
        """Return the share of completed requests with a response within ``threshold_s``; errors are not on time.

        Args:
            threshold_s: seconds.

        Returns:
            A share from 0 to 1; NaN before the first request.
        """
        if not self.requests:
            return float("nan")
        return self.latency.share_within(threshold_s) * self.succeeded / self.requests if self.succeeded else 0.0

    def parts(self) -> Mapping[str, LatencyHistogram]:
        """Return the histograms of the latency's parts by name, in the order of the parts."""
        return {name: getattr(self, name) for name in PARTS}

    def plot(self, ax: Any = None) -> Any:
        """Draw the latency and its parts: median, 99th and 99.9th percentile and maximum of each.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        from streaminfer.telemetry.parts_plot import plot_parts  # noqa: PLC0415 - serving does not need it

        return plot_parts(ax, {"latency": self.latency, **self.parts()})

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
        table += self._labeled_table()
        table += "" if self.slo is None else self.slo._repr_html_()
        if not self.latency.count:
            return table
        from streaminfer._internal.display.figures import inline_svg  # noqa: PLC0415 - serving does not need it

        return inline_svg(self.plot, f"Latency by part: {self!r}", height_in=2.8) + table

    def _labeled_table(self) -> str:
        if not self.labeled:
            return ""
        names = [name for name, _ in self.labeled[0].labels]
        rows = [
            (
                *(value or "none" for _, value in each.labels),
                f"{each.requests:,}",
                *(f"{each.latency.quantile(q) * 1e3:.3f}" for q in (0.5, 0.99)),
            )
            for each in self.labeled
        ]
        return html_table(rows, head=(*names, "requests", "p50, ms", "p99, ms"), caption=f"by {', '.join(names)}")


class _CountsResponses(Protocol):
    def responses(self) -> tuple[int, int]: ...


def read_responses(
    counts: _CountsResponses, latency: LatencyHistogram, *, live: bool
) -> tuple[LatencyHistogram, int, int]:
    """Return the latency of responses, and the numbers of degraded and of all responses, at the same moment.

    With numbers from different moments, the count of non-degraded responses could fall.

    Args:
        counts: recorder that counts the responses.
        latency: latency histogram of the recorder.
        live: return the histogram itself, which continues to count; then only the numbers are from the same moment.
    """
    while True:
        read = latency if live else latency.copy()
        degraded, responses = counts.responses()
        if live or read.count == responses:  # otherwise another thread has counted a response meanwhile
            return read, degraded, responses


def _differences(now: Mapping[K, int], before: Mapping[K, int]) -> dict[K, int]:
    differences = {key: count - before.get(key, 0) for key, count in now.items()}
    return {key: count for key, count in differences.items() if count}
