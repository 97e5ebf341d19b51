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
    settings = _Settings(quantile, false_alarm, least_change)
    if reason := _bottleneck(first, second):
        return settings.no_verdict(reason)
    if len(first) != len(second):
        raise ValueError(expected("after", f"as many runs as before, {len(first)}", len(second)))
    if len(first) > 1:
        return _compare_pairs(first, second, settings)
    return _compare_two(first[0], second[0], settings)


@attrs.frozen
class _Run:
    latencies_s: Any
    due_s: Any
    report: Report | None = None


@attrs.frozen
class _Settings:
    quantile: float
    false_alarm: float
    least_change: float

    def no_verdict(self, reason: str) -> Verdict:
        nan = math.nan
        return Verdict(
            "undecided", nan, (nan, nan), self.quantile, nan, nan, self.false_alarm, self.least_change, reason
        )

    def lost_in_both(self, *levels_s: tuple[float, float]) -> str:
        """Return why runs with these quantiles cannot be compared; empty if each pair has a response at one of them."""
        if all(math.isfinite(min(pair)) for pair in levels_s):
            return ""
        return f"neither side has a p{100 * self.quantile:g}: too many requests got no response"

    def judge(self, log_change: float, error: float, degrees: float, levels_s: tuple[float, float]) -> Verdict:
        half_width = student_quantile(1 - self.false_alarm / 2, degrees) * error
        interval = math.expm1(log_change - half_width), math.expm1(log_change + half_width)
        reason = ""
        result: Result
        if interval[0] > 0:
            result = "regressed"
        elif interval[1] < 0:
            result = "improved"
        elif interval[1] < self.least_change:
            result = "unchanged"
        else:
            result = "undecided"
            min_log_change = math.log1p(self.least_change)
            times = (
                _POWER * half_width / max(abs(log_change), min_log_change - log_change)
            ) ** 2  # to exclude one of both
            reason = f"the runs cannot exclude {self.least_change:+.0%}; they need about {times:.1f}× the requests"
        return Verdict(
            result, math.expm1(log_change), interval, self.quantile, *levels_s, self.false_alarm, self.least_change,
            reason,
        )  # fmt: skip


def _runs(argument: str, value: Any) -> list[_Run]:
    if isinstance(value, Report):
        return [_Run(value.latencies_s, value.record.due_s, value)]
    if isinstance(value, Sequence) and value and all(isinstance(each, Report) for each in value):
        return [run for each in value for run in _runs(argument, each)]
    expectation = "a Report, a sequence of them, or latencies in seconds"
    latencies = real_array(argument, value, expectation)
    if latencies.ndim != 1 or not latencies.size or np.isnan(latencies).any() or latencies.min() < 0:
        raise ValueError(expected(argument, expectation, value))
    return [_Run(latencies, np.arange(latencies.size, dtype=np.float64))]


def _bottleneck(before: list[_Run], after: list[_Run]) -> str:
    for side, runs in (("before", before), ("after", after)):
        for run in runs:
            if run.report is not None and not run.report.kept_schedule:
                return f"the sender of {side} was the bottleneck: {describe_lateness(run.report)}"
    return ""


def _capped(first: Any, second: Any) -> tuple[Any, Any]:
    """Clip the latencies of both sides so that each has a logarithm: no latency is infinite or 0."""
    slowest = max((float(side[np.isfinite(side)].max(initial=0.0)) for side in (first, second)), default=0.0) or 1.0
    return np.clip(first, _LEAST_S, _LOST_FACTOR * slowest), np.clip(second, _LEAST_S, _LOST_FACTOR * slowest)


def _compare_two(before: _Run, after: _Run, settings: _Settings) -> Verdict:
    q = settings.quantile
    fewest = min(before.latencies_s.size, after.latencies_s.size)
    if fewest * (1 - q) < LEAST_TAIL_REQUESTS:
        needed = math.ceil(LEAST_TAIL_REQUESTS / (1 - q))
        return settings.no_verdict(f"a run has {fewest:,} requests, and p{100 * q:g} needs at least {needed:,}")
    first, second = _capped(before.latencies_s, after.latencies_s)
    levels_s = quantile_of(before.latencies_s, q), quantile_of(after.latencies_s, q)
    if reason := settings.lost_in_both(levels_s):
        return settings.no_verdict(reason)
    first_blocks, second_blocks = Blocks.of(first, before.due_s, q), Blocks.of(second, after.due_s, q)
    effective = min(first_blocks.effective, second_blocks.effective)
    if effective < LEAST_TAIL_BLOCKS:
        return settings.no_verdict(
            f"the slowest requests of a run come from about {effective:.1f} incidents, and a verdict needs at least "
            f"{LEAST_TAIL_BLOCKS:.0f}: run longer, or compare runs in turn"
        )
    if not (first_blocks.are_steady and second_blocks.are_steady):
        return settings.no_verdict(
            "the tail of a run changes slowly while it lasts: compare runs in turn, or longer ones"
        )
    error = _error(
        first_blocks.log_error(q, 1),
        second_blocks.log_error(q, 2),
        float(np.ptp(before.due_s)),
        float(np.ptp(after.due_s)),
    )
    verdict = settings.judge(_log_change(first, second, q), error, effective - 1, levels_s)
    if (verdict.regressed or verdict.improved) and not differ(first_blocks, second_blocks, q, settings.false_alarm):
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


def _compare_pairs(before: list[_Run], after: list[_Run], settings: _Settings) -> Verdict:
    q = settings.quantile
    if len(before) < LEAST_PAIRS:
        return settings.no_verdict(f"{len(before)} pairs of runs, and a verdict needs at least {LEAST_PAIRS}")
    fewest = min(run.latencies_s.size for run in (*before, *after))
    if fewest * (1 - q) < LEAST_TAIL_PER_PAIR:
        needed = math.ceil(LEAST_TAIL_PER_PAIR / (1 - q))
        return settings.no_verdict(f"a run has {fewest:,} requests, and p{100 * q:g} of each needs at least {needed:,}")
    pairs = [_capped(one.latencies_s, other.latencies_s) for one, other in zip(before, after, strict=True)]
    changes = [_log_change(first, second, q) for first, second in pairs]
    error = statistics.stdev(changes) / math.sqrt(len(changes))
    first_s, second_s = ([quantile_of(run.latencies_s, q) for run in side] for side in (before, after))
    if reason := settings.lost_in_both(*zip(first_s, second_s, strict=True)):
        return settings.no_verdict(reason)
    levels_s = statistics.median(first_s), statistics.median(second_s)
    return settings.judge(statistics.fmean(changes), error, len(changes) - 1, levels_s)


def _log_change(before: Any, after: Any, q: float) -> float:
    return math.log(quantile_of(after, q) / quantile_of(before, q))
