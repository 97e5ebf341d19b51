"""Table of user outcomes: rates and means by route, latency and quality, with confidence intervals.

*Design.* Cells can be merged. They hold counts, means and sums of squared distances from the means (Chan, Golub,
LeVeque 1979), which lose no digits if values are large and similar. A rate has Wilson's interval, which is also valid
for few requests and for rates near 0 and 1. The difference of two rates has Newcombe's interval, which combines both
Wilson intervals. A mean has Student's interval. All intervals are at 95 %.

*References.* Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Newcombe, "Interval
estimation for the difference between independent proportions", 1998, method 10.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.distributions.quantiles import normal_quantile, student_quantile
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import expected
from streaminfer.telemetry.families.routes import OTHER

__all__ = ["Estimate", "OutcomeCell", "OutcomeRow", "OutcomeTable", "Sums"]

_UPPER = 0.975  # upper quantile of a 95 % interval
_Z = normal_quantile(_UPPER)
Field = Literal["route", "latency", "degraded"]
_FIELDS = ("route", "latency", "degraded")


class Estimate(NamedTuple):
    """An estimate and its 95 % confidence interval; NaN if nothing was reported.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@attrs.define
class Sums:
    """Number of reports of one outcome, and sums over their values.

    Attributes:
        reported: requests with the outcome.
        valued: requests with a value.
        mean: mean of the values.
        squares: sum of the squared distances from the mean.
    """

    reported: int = 0
    valued: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, other: "Sums") -> None:
        """Add the reports of another cell."""
        self.reported += other.reported
        if other.valued:
            self.valued += other.valued
            share, distance = other.valued / self.valued, other.mean - self.mean
            self.squares += other.squares + distance * distance * (self.valued - other.valued) * share
            self.mean += distance * share


@attrs.define
class OutcomeCell:
    """Requests of one route, latency and quality, with their reports.

    Attributes:
        requests: settled requests.
        outcomes: reports by name of the outcome.
    """

    requests: int = 0
    outcomes: dict[str, Sums] = attrs.field(factory=dict)

    def settle(self, reports: dict[str, float | None]) -> None:
        """Count a request, with a value or ``None`` for each reported outcome."""
        self.requests += 1
        for name, value in reports.items():
            sums = self.outcomes.setdefault(name, Sums())
            sums.add(Sums(1) if value is None else Sums(1, 1, value))

    def add(self, other: "OutcomeCell") -> None:
        """Add the requests of another cell."""
        self.requests += other.requests
        for name, sums in other.outcomes.items():
            self.outcomes.setdefault(name, Sums()).add(sums)


@attrs.frozen(kw_only=True)
class OutcomeRow(Snapshot):
    """One outcome of the requests of one cell.

    Attributes:
        of: fields of the cell: ``{"route": ..., "latency": ..., "degraded": ...}``, or some of these.
        outcome: name of the outcome.
        requests: settled requests.
        reported: settled requests with the outcome.
        rate: share of the settled requests with the outcome.
        mean: mean of the reported values.
    """

    of: dict[str, Any]
    outcome: str
    requests: int
    reported: int
    rate: Estimate
    mean: Estimate


@attrs.frozen(kw_only=True, repr=False)
class OutcomeTable(Snapshot):
    """User outcomes by route, latency and quality of the response, from :meth:`Outcomes.table`.

    Counting rule: a request is counted when the time for its reports is over, with all reports until then.

    Attributes:
        rows: one row per cell and outcome.
        pending: requests that are still open for reports.
        unknown: reports for requests that are unknown, or not pending any more (counted or evicted).
        evicted: requests removed early, because too many were pending or their id was used again; they are in no row.
    """

    rows: tuple[OutcomeRow, ...]
    pending: int
    unknown: int
    evicted: int
    _cells: tuple[tuple[tuple[Any, ...], OutcomeCell], ...]
    _latencies: tuple[str, ...]

    @classmethod
    def of(
        cls, cells: Iterable[tuple[tuple[Any, ...], OutcomeCell]], latencies: tuple[str, ...], **counters: int
    ) -> "OutcomeTable":
        """Return the table of cells by route, latency and quality, with the latencies in the given order."""
        ordered = tuple(cells)
        return cls(rows=_rows(ordered, latencies, _FIELDS), cells=ordered, latencies=latencies, **counters)

    def by(self, *fields: Field) -> tuple[OutcomeRow, ...]:
        """Return the rows by some fields only; ``table.by("degraded")`` shows the effect of degraded responses.

        Args:
            *fields: some of ``"route"``, ``"latency"`` and ``"degraded"``; without fields, all requests together.

        Raises:
            ValueError: a field is unknown.
        """
        for field in fields:
            if field not in _FIELDS:
                raise ValueError(expected("fields", f"some of {_FIELDS}", field))
        return _rows(self._cells, self._latencies, fields)

    def difference(self, outcome: str, field: Field = "degraded", *, of: Any = True, to: Any = False) -> Estimate:
        """Return the difference of an outcome's rate between two groups of requests.

        Args:
            outcome: name of the outcome.
            field: field that distinguishes the groups.
            of: value of the field in the first group; by default degraded responses.
            to: value of the field in the second group.

        Returns:
            ``rate(of) - rate(to)``; the groups differ significantly if the interval does not contain 0.

        Raises:
            ValueError: the field is unknown.
        """
        rows = {row.of[field]: row for row in self.by(field) if row.outcome == outcome}
        first, second = ((rows[group].rate if group in rows else _UNKNOWN) for group in (of, to))
        value = first.value - second.value
        low = value - math.hypot(first.value - first.low, second.high - second.value)
        high = value + math.hypot(first.high - first.value, second.value - second.low)
        return Estimate(value, low, high)

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and the counters as JSON values."""
        values = super().to_dict()
        del values["_cells"], values["_latencies"]
        return values

    def __repr__(self) -> str:
        lines = [f"<OutcomeTable: {self.pending} pending, {self.unknown} unknown, {self.evicted} evicted>"]
        lines += ["  ".join(_texts(row)) for row in self.rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = (*_FIELDS, "outcome", "reported", "rate, 95 %", "mean, 95 %")
        caption = f"{self.pending:,} pending, {self.unknown:,} unknown, {self.evicted:,} evicted"
        return html_table((_texts(row) for row in self.rows), head=head, caption=caption)


def _rows(
    cells: Sequence[tuple[tuple[Any, ...], OutcomeCell]], latencies: tuple[str, ...], fields: Sequence[str]
) -> tuple[OutcomeRow, ...]:
    rank = {value: number for number, value in enumerate((*latencies, False, True))}  # others by name, then "other"
    merged: dict[tuple[Any, ...], OutcomeCell] = {}
    for values, cell in cells:
        named = dict(zip(_FIELDS, values, strict=True))
        merged.setdefault(tuple(named[field] for field in fields), OutcomeCell()).add(cell)
    outcomes = sorted({name for cell in merged.values() for name in cell.outcomes})

    def sort_key(item: tuple[tuple[Any, ...], OutcomeCell]) -> list[tuple[int, str]]:
        return [(rank.get(value, len(rank)), str(value)) for value in item[0]]

    return tuple(
        OutcomeRow(
            of=dict(zip(fields, values, strict=True)),
            outcome=outcome,
            requests=cell.requests,
            reported=sums.reported,
            rate=_wilson(sums.reported, cell.requests),
            mean=_mean(sums),
        )
        for values, cell in sorted(merged.items(), key=sort_key)
        if cell.requests
        for outcome in outcomes
        for sums in (cell.outcomes.get(outcome, Sums()),)
    )


def _wilson(successes: int, trials: int) -> Estimate:
    share, factor = successes / trials, _Z * _Z / trials
    middle = (share + factor / 2) / (1 + factor)
    half_width = _Z * math.sqrt(share * (1 - share) / trials + factor / (4 * trials)) / (1 + factor)
    return Estimate(share, max(middle - half_width, 0.0), min(middle + half_width, 1.0))


def _mean(sums: Sums) -> Estimate:
    if not sums.valued:
        return _UNKNOWN
    if sums.valued == 1:
        return Estimate(sums.mean, math.nan, math.nan)
    degrees = sums.valued - 1
    half_width = student_quantile(_UPPER, degrees) * math.sqrt(sums.squares / degrees / sums.valued)
    return Estimate(sums.mean, sums.mean - half_width, sums.mean + half_width)


def _texts(row: OutcomeRow) -> tuple[str, ...]:
    mean = "" if math.isnan(row.mean.value) else f"{row.mean.value:.4g}"
    if not math.isnan(row.mean.low):  # a single value has no interval
        mean += f" ({row.mean.low:.4g} to {row.mean.high:.4g})"
    rate = f"{row.rate.value:.2%} ({row.rate.low:.2%} to {row.rate.high:.2%})"
    quality = {False: "full", True: "degraded"}.get(row.of["degraded"], OTHER)
    counts = f"{row.reported:,} of {row.requests:,}"
    return (str(row.of["route"]), str(row.of["latency"]), quality, row.outcome, counts, rate, mean)
