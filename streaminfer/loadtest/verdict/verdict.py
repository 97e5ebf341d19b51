"""`compare`: tests whether a latency quantile changed between two runs, with a stated rate of false alarms.

*Design.* The test uses the change of the quantile's logarithm, with an interval from Student's distribution. For two
runs, the error comes from a block bootstrap (`block_bootstrap`). The degrees of freedom follow from the number of
blocks over which the slowest requests are spread: three incidents are three observations, however many requests they
hit. For "regressed" and "improved", the share of requests above the common quantile must have changed as well. For
interleaved runs, the changes of the pairs are the sample, so a slow change of the machine affects both sides.

The interval covers the true change with probability ``1 - false_alarm``. For a verdict other than "undecided", the
interval must exclude either no change, or every change of ``least_change`` and more.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np

from streaminfer._internal.distributions.quantiles import student_quantile
from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import check_number, check_share, expected
from streaminfer.loadtest.quantiles import quantile_of, say_latency
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.report.sentences import describe_lateness
from streaminfer.loadtest.sending.record import ANSWERED, Record
from streaminfer.loadtest.verdict.block_bootstrap import Blocks, differ

__all__ = ["Result", "Verdict", "compare"]

Result = Literal["regressed", "improved", "unchanged", "undecided"]

LEAST_PAIRS = 6
LEAST_TAIL_BLOCKS = 6.0
"""Fewest effective blocks with the slowest requests; fewer do not show how much the tail varies."""
LEAST_TAIL_REQUESTS = 30
"""Fewest requests above the quantile in each run."""
LEAST_TAIL_PER_PAIR = 3
_MAX_DURATION_RATIO = 1.5
"""Ratio of the durations of two runs above which the longer run bounds the error of the shorter one from below."""
_POWER = 1.7
"""Margin in half-widths of the interval: with it, the interval ends below the least change in 95 of 100 runs."""
_LEAST_S = 1e-9
"""Shortest latency that clocks resolve."""
_LOST_FACTOR = 10.0
"""Latency of a request without a response, as a multiple of the slowest response of both runs."""


@attrs.frozen
class Verdict:
    """Comparison of a latency quantile of two runs.

    Attributes:
        result: ``"regressed"`` or ``"improved"``: the interval does not contain 0; ``"unchanged"``: it ends below
            ``least_change``; ``"undecided"``: otherwise, and ``reason`` says why.
        change: relative change of the quantile: 0.1 is ten percent slower. If the runs allow no verdict, the change,
            the interval and both quantiles are NaN.
        interval: lower and upper end; it covers the true change with probability ``1 - false_alarm``.
        quantile: the quantile, as a share.
        before_s: the quantile before, in seconds; infinite if too few requests got a response. For several runs, the
            median over the runs.
        after_s: the same for the runs after.
        false_alarm: probability of "regressed" or "improved" if nothing changed; half of it for each.
        least_change: smallest relative change that matters.
        reason: why the result is undecided; empty otherwise.
    """

    result: Result
    change: float
    interval: tuple[float, float]
    quantile: float
    before_s: float
    after_s: float
    false_alarm: float
    least_change: float
    reason: str = ""

    @property
    def regressed(self) -> bool:
        """True if the quantile has become higher, more than chance explains."""
        return self.result == "regressed"

    @property
    def improved(self) -> bool:
        """True if the quantile has become lower, more than chance explains."""
        return self.result == "improved"

    @property
    def undecided(self) -> bool:
        """True if there is no verdict."""
        return self.result == "undecided"

    def __str__(self) -> str:
        name = f"p{100 * self.quantile:g}"
        if math.isnan(self.change):
            return f"{name} undecided: {self.reason}"
        low, high = self.interval
        text = (
            f"{name} {self.result}: {say_latency(self.before_s)} → {say_latency(self.after_s)}, "
            f"{self.change:+.1%} ({low:+.1%} to {high:+.1%}; false alarms {self.false_alarm:.1%})"
        )
        return f"{text}: {self.reason}" if self.reason else text


def compare(
    before: Any,
    after: Any,
    *,
    quantile: float = 0.99,
    false_alarm: float = 0.02,
    least_change: float = 0.1,
) -> Verdict:
    """Compare a latency quantile of two runs, or of two series of interleaved runs.

    Args:
        before: a `Report`; latencies in seconds, in the order of due time; or a sequence of reports of runs that
            alternated with those of ``after``, as `interleave` returns them.
        after: the same for the other side.
        quantile: the quantile, as a share.
        false_alarm: probability of "regressed" or "improved" if nothing changed.
        least_change: smallest relative change that matters; the interval of an "unchanged" verdict ends below it.

    Returns:
        The verdict. It is "undecided" if a schedule was not kept or the runs are too short.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    quantile = check_share("quantile", quantile)
    false_alarm = check_share("false_alarm", false_alarm)
    least_change = check_number("least_change", least_change, "a number > 0", lambda number: 0 < number < math.inf)
    first, second = _runs("before", before), _runs("after", after)
    if len(first) != len(second):
        raise ValueError(expected("after", f"as many runs as before, {len(first)}", len(second)))
    nan = math.nan
    undecided = Verdict("undecided", nan, (nan, nan), quantile, nan, nan, false_alarm, least_change)
    result: Verdict | str = _obstacle(first, second, quantile)
    if not result:
        result = (_compare_pairs if len(first) > 1 else _compare_two)(first, second, undecided)
    return attrs.evolve(undecided, reason=result) if isinstance(result, str) else result


def _runs(argument: str, value: Any) -> Sequence[Report]:
    if isinstance(value, Report):
        return [value]
    if isinstance(value, Sequence) and value and all(isinstance(each, Report) for each in value):
        return value
    expectation = "a Report, a sequence of them, or latencies in seconds"
    latencies = real_array(argument, value, expectation)
    if latencies.ndim != 1 or not latencies.size or np.isnan(latencies).any() or latencies.min() < 0:
        raise ValueError(expected(argument, expectation, value))
    due_s = np.arange(latencies.size, dtype=np.float64)
    record = Record(due_s, np.zeros(due_s.size), latencies, np.full(due_s.size, ANSWERED))
    return [Report(record, slo_s=1.0, duration_s=1.0)]


def _obstacle(before: Sequence[Report], after: Sequence[Report], q: float) -> str:
    """Return why runs cannot be compared; empty if they can."""
    for side, runs in (("before", before), ("after", after)):
        for run in runs:
            if not run.kept_schedule:
                return f"the sender of {side} was the bottleneck: {describe_lateness(run)}"
    if 1 < len(before) < LEAST_PAIRS:
        return f"{len(before)} pairs of runs, and a verdict needs at least {LEAST_PAIRS}"
    fewest = min(run.requests for run in (*before, *after))
    needed = math.ceil((LEAST_TAIL_REQUESTS if len(before) == 1 else LEAST_TAIL_PER_PAIR) / (1 - q))
    if fewest < needed:
        return f"a run has {fewest:,} requests, and p{100 * q:g} needs at least {needed:,}"
    if any(math.isinf(min(one.quantile(q), other.quantile(q))) for one, other in zip(before, after, strict=True)):
        return f"neither side has a p{100 * q:g}: too many requests got no response"
    return ""


def _judge(
    undecided: Verdict, log_change: float, error: float, degrees: float, levels_s: tuple[float, float]
) -> Verdict:
    """Return the verdict on a change; ``undecided`` has the settings."""
    half_width = student_quantile(1 - undecided.false_alarm / 2, degrees) * error
    low, high = math.expm1(log_change - half_width), math.expm1(log_change + half_width)
    least_change, reason = undecided.least_change, ""
    result: Result
    if low > 0:
        result = "regressed"
    elif high < 0:
        result = "improved"
    elif high < least_change:
        result = "unchanged"
    else:
        result = "undecided"
        to_exclude = max(abs(log_change), math.log1p(least_change) - log_change)  # one of both
        times = (_POWER * half_width / to_exclude) ** 2
        reason = f"the runs cannot exclude {least_change:+.0%}; they need about {times:.1f}× the requests"
    return attrs.evolve(
        undecided,
        result=result,
        change=math.expm1(log_change),
        interval=(low, high),
        before_s=levels_s[0],
        after_s=levels_s[1],
        reason=reason,
    )


def _capped(first: Any, second: Any) -> tuple[Any, Any]:
    """Clip the latencies of both sides so that each has a logarithm: no latency is infinite or 0."""
    slowest = max((float(side[np.isfinite(side)].max(initial=0.0)) for side in (first, second)), default=0.0) or 1.0
    return np.clip(first, _LEAST_S, _LOST_FACTOR * slowest), np.clip(second, _LEAST_S, _LOST_FACTOR * slowest)


def _compare_two(before: Sequence[Report], after: Sequence[Report], undecided: Verdict) -> Verdict | str:
    """Return the verdict on two runs, or why there is none."""
    q, records = undecided.quantile, (before[0].record, after[0].record)
    first, second = _capped(*(record.latency_s for record in records))
    blocks = [Blocks.of(values, record.due_s, q) for values, record in zip((first, second), records, strict=True)]
    effective = min(each.effective for each in blocks)
    if effective < LEAST_TAIL_BLOCKS:
        return (
            f"the slowest requests of a run come from about {effective:.1f} incidents, and a verdict needs at least "
            f"{LEAST_TAIL_BLOCKS:.0f}: run longer, or compare runs in turn"
        )
    if not all(each.are_steady for each in blocks):
        return "the tail of a run changes slowly while it lasts: compare runs in turn, or longer ones"
    errors = (each.log_error(q, seed) for seed, each in enumerate(blocks, 1))
    error = _error(*errors, *(float(np.ptp(record.due_s)) for record in records))
    levels_s = before[0].quantile(q), after[0].quantile(q)
    verdict = _judge(undecided, _log_change(first, second, q), error, effective - 1, levels_s)
    if (verdict.regressed or verdict.improved) and not differ(blocks[0], blocks[1], q, undecided.false_alarm):
        reason = "few latencies are close to the quantile, and the share of requests above it did not change"
        return attrs.evolve(verdict, result="undecided", reason=reason)
    return verdict


def _error(before: float, after: float, before_s: float, after_s: float) -> float:
    """Return the error of a change, from the errors and the durations of both runs.

    A short run can miss incidents that hit a long run now and then. Its error is therefore at least that of the long
    run, scaled to the shorter duration.
    """
    if after_s > _MAX_DURATION_RATIO * before_s:
        before = max(before, after * math.sqrt(after_s / before_s))
    elif before_s > _MAX_DURATION_RATIO * after_s:
        after = max(after, before * math.sqrt(before_s / after_s))
    return math.hypot(before, after)


def _compare_pairs(before: Sequence[Report], after: Sequence[Report], undecided: Verdict) -> Verdict:
    q = undecided.quantile
    pairs = zip(before, after, strict=True)
    changes = [_log_change(*_capped(one.latencies_s, other.latencies_s), q) for one, other in pairs]
    error = statistics.stdev(changes) / math.sqrt(len(changes))
    levels_s = statistics.median(run.quantile(q) for run in before), statistics.median(run.quantile(q) for run in after)
    return _judge(undecided, statistics.fmean(changes), error, len(changes) - 1, levels_s)


def _log_change(before: Any, after: Any, q: float) -> float:
    return math.log(quantile_of(after, q) / quantile_of(before, q))
