"""`compare`: false alarms, detection, and comparisons without a verdict."""

import math
import re

import attrs
import numpy as np
import pytest

from streaminfer.loadtest import Record, Report, compare
from streaminfer.loadtest.verdict.block_bootstrap import Blocks
from streaminfer.loadtest.verdict.verdict import _error, _judge


def queue(n, seed, *, rate=100.0, mean_s=0.005):
    """Return latencies of a single server with varying service times; they are correlated, as real ones are."""
    rng = np.random.default_rng(seed)
    gaps, work = rng.exponential(1 / rate, n), mean_s * rng.lognormal(-0.125, 0.5, n)
    steps = np.concatenate([[0], np.cumsum(work[:-1] - gaps[1:])])
    return steps - np.minimum.accumulate(steps) + work


def independent(n, seed):
    return 0.01 * np.random.default_rng(seed).lognormal(0, 0.5, n)


def report(latencies_s, *, late_s=0.0, slo_s=0.1):
    latencies_s = np.asarray(latencies_s, np.float64)
    due_s = np.arange(latencies_s.size) / 100
    outcome = np.where(np.isinf(latencies_s), "Overloaded", "ok")
    record = Record(due_s, np.full(due_s.size, late_s), latencies_s, outcome)
    return Report(record, slo_s=slo_s, duration_s=latencies_s.size / 100)


class TestError:
    def test_same_distribution_is_rarely_a_change(self):
        """Of 100 comparisons of runs that do not differ, at most 2 % are false alarms."""
        runs = [independent(6_000, seed) for seed in range(50)] + [queue(6_000, seed) for seed in range(50)]
        others = [independent(6_000, 1000 + seed) for seed in range(50)]
        others += [queue(6_000, 1000 + seed) for seed in range(50)]

        verdicts = [compare(one, other) for one, other in zip(runs, others, strict=True)]

        assert sum(verdict.regressed or verdict.improved for verdict in verdicts) <= 2

    def test_quantile_between_two_modes(self):
        """If 1 % are misses, ten times as slow as hits, p99 is either, and a change between them is no verdict."""

        def cached(seed):
            rng = np.random.default_rng(seed)
            return np.where(rng.random(6_000) < 0.01, 0.1, 0.01) * rng.lognormal(0, 0.05, 6_000)

        verdicts = [compare(cached(seed), cached(1_000 + seed)) for seed in range(30)]

        assert sum(verdict.regressed or verdict.improved for verdict in verdicts) <= 1
        assert any("few latencies are close to the quantile" in verdict.reason for verdict in verdicts)

    def test_ten_percent_is_detected(self):
        """A p99 that is 10 % higher is found in 19 of 20 pairs of runs that are long enough."""
        found = [compare(independent(20_000, seed), 1.1 * independent(20_000, 500 + seed)) for seed in range(20)]

        assert sum(verdict.regressed for verdict in found) >= 19

    def test_interval_widens_with_correlation(self):
        """The error of a queue's tail is larger than that of as many independent requests."""
        at = np.arange(20_000.0)

        correlated, free = (
            Blocks.of(run, at, 0.99).log_error(0.99, 1) for run in (queue(20_000, 1), independent(20_000, 1))
        )

        assert correlated > 1.5 * free

    @pytest.mark.parametrize(
        ("durations_s", "error"),
        [
            ((10.0, 10.0), 0.05),
            ((14.0, 10.0), 0.05),
            ((10.0, 160.0), math.hypot(0.16, 0.04)),
            ((160.0, 10.0), math.hypot(0.03, 0.12)),
        ],
        ids=["equal", "nearly", "longer after", "longer before"],
    )
    def test_error_of_short_run_is_scaled_from_long_run(self, durations_s, error):
        """A short run may miss rare incidents of a long one, so its error is scaled from that of the long run."""
        before, after = (0.03, 0.04)

        assert _error(before, after, *durations_s) == pytest.approx(error, rel=0.01)


class TestResult:
    def test_regressed(self):
        """A doubled tail regressed; the change is relative."""
        run = independent(20_000, 1)

        verdict = compare(report(run), report(2 * independent(20_000, 2)))

        assert verdict.regressed
        assert verdict.change == pytest.approx(1.0, abs=0.1)
        assert verdict.interval[0] < verdict.change < verdict.interval[1]
        assert str(verdict).startswith("p99 regressed: ")

    def test_improved(self):
        """A halved tail improved."""
        assert compare(independent(20_000, 1), 0.5 * independent(20_000, 2)).improved

    def test_unchanged(self):
        """Long runs that do not differ exclude a change of 10 %."""
        verdict = compare(independent(50_000, 1), independent(50_000, 2))

        assert verdict.result == "unchanged"
        assert not verdict.regressed

    def test_lost_requests_regress(self):
        """A tail without responses is worse than any latency."""
        lost = independent(20_000, 2)
        lost[::50] = np.inf

        assert compare(independent(20_000, 1), lost).regressed

    def test_false_alarm_widens_the_interval(self):
        """A rarer false alarm needs a wider interval."""
        runs = independent(20_000, 1), independent(20_000, 2)

        strict, lenient = compare(*runs, false_alarm=0.001).interval, compare(*runs, false_alarm=0.2).interval

        assert strict[0] < lenient[0] < lenient[1] < strict[1]


def test_verdict_has_python_numbers():
    """NumPy numbers count as Python's: a search for a quantile in 32 bits would never end."""
    numbers = {name: np.float32(0.05) for name in ("quantile", "false_alarm", "least_change")}

    verdict = compare([1.0], [1.0], **numbers)

    assert {type(getattr(verdict, name)) for name in numbers} == {float}


class TestUndecided:
    @pytest.mark.parametrize(
        ("late_s", "said"),
        [
            (0.02, "at the 99th percentile requests were sent 20 ms late, and 10 ms is allowed"),
            (np.nan, "100.00% of the requests were not sent"),
        ],
        ids=["late", "not sent"],
    )
    @pytest.mark.parametrize("side", ["before", "after"])
    def test_generator_was_the_bottleneck(self, side, late_s, said):
        """Requests that were sent late, or not at all, allow no verdict; the reason names the side."""
        runs = {"before": report(independent(20_000, 1)), "after": report(9 * independent(20_000, 2))}
        runs[side] = report(runs[side].latencies_s, late_s=late_s)

        verdict = compare(runs["before"], runs["after"])

        assert verdict.undecided
        assert not verdict.regressed
        assert verdict.reason == f"the sender of {side} was the bottleneck: {said}"
        assert math.isnan(verdict.change)

    def test_too_few_requests(self):
        """A p99 needs 3,000 requests, of which 30 are in the tail."""
        assert "p99 needs at least 3,000" in compare(independent(2_000, 1), independent(2_000, 2)).reason

    def test_tail_from_one_incident_is_undecided(self):
        """A tail from one incident is one observation, and allows no verdict."""
        stalled = independent(20_000, 2)
        stalled[5_000:5_300] += 1.0

        assert "incidents" in compare(independent(20_000, 1), stalled).reason

    @pytest.mark.parametrize("burst_first", [True, False], ids=["before", "after"])
    def test_burst_against_a_run(self, burst_first):
        """A burst, whose requests are all due at once, is one incident, and has no duration to scale errors by."""
        run = report(independent(20_000, 1))
        burst = attrs.evolve(run, record=attrs.evolve(run.record, due_s=np.zeros(20_000)))

        verdict = compare(*((burst, run) if burst_first else (run, burst)))

        assert "come from about 1.0 incidents" in verdict.reason

    def test_slow_drift_is_undecided(self):
        """A run on a machine that becomes slower allows no verdict, because its tail changes while it lasts."""
        warming = independent(20_000, 2) * np.linspace(1.0, 1.6, 20_000)

        assert "changes slowly while it lasts" in compare(independent(20_000, 1), warming).reason

    def test_wide_interval(self):
        """If two runs cannot exclude a change of 10 %, the reason says how many requests they need."""
        verdict = compare(independent(3_500, 1), independent(3_500, 2))

        assert verdict.undecided
        assert "the runs cannot exclude +10%; they need about" in verdict.reason

    @pytest.mark.parametrize("change", [-0.05, 0.0, 0.045, 0.09])
    def test_undecided_interval_needs_more_requests(self, change):
        """An undecided verdict needs more requests, wherever its interval lies."""
        error = 1.01 * max(abs(math.log1p(change)), math.log1p(0.1) - math.log1p(change)) / 2.3264

        undecided = compare([1.0], [1.0])
        verdict = _judge(undecided, math.log1p(change), error, 1e9, (0.01, 0.01))

        assert verdict.undecided
        assert float(re.search(r"about (.*)×", verdict.reason)[1]) >= 2.0


class TestExtremes:
    def test_no_response(self):
        """A verdict shows a tail without responses as "no response", whatever latency counts for the change."""
        before, after = queue(20_000, 1), queue(20_000, 2)
        after[::30] = math.inf

        verdict = compare(before, after)

        assert verdict.regressed
        assert verdict.after_s == math.inf
        assert "→ no response, +" in str(verdict)

    def test_lost_in_both_runs(self):
        """If neither run has a response at the quantile, more lost requests are undecided, and not "unchanged"."""
        before, after = independent(6_000, 1), independent(6_000, 2)
        before[::50], after[::2] = math.inf, math.inf
        pairs = [report(before)] * 6, [report(after)] * 6
        some = [report(independent(6_000, 3))] * 4
        mixed = [*some, *pairs[0][:2]], [*some, *pairs[1][:2]]

        verdicts = [compare(before, after), compare(*pairs), compare(*mixed)]

        assert [verdict.result for verdict in verdicts] == ["undecided"] * 3
        assert {verdict.reason for verdict in verdicts} == {"neither side has a p99: too many requests got no response"}

    def test_zero_latencies(self):
        """Latencies of 0, as in virtual time, are compared like others."""
        assert compare(np.zeros(6_000), np.zeros(6_000)).result == "unchanged"


class TestPairs:
    def test_slow_drift_of_the_machine_cancels(self):
        """Interleaved runs on a machine that becomes slower find a change of 10 %, and none without a change."""
        drift = np.linspace(1.0, 3.0, 12)
        before = [report(level * independent(2_000, seed)) for seed, level in enumerate(drift)]
        after = [report(1.1 * level * independent(2_000, 100 + seed)) for seed, level in enumerate(drift)]

        assert compare(before, after, false_alarm=0.1).change == pytest.approx(0.1, abs=0.06)
        assert (
            compare(before, [report(level * independent(2_000, 50 + s)) for s, level in enumerate(drift)]).regressed
            is False
        )

    def test_fewer_than_six_pairs(self):
        """A comparison of pairs needs at least six."""
        runs = [report(independent(2_000, seed)) for seed in range(5)]

        assert "5 pairs of runs" in compare(runs, runs).reason

    def test_unequal_numbers(self):
        """Both sides must have the same number of runs."""
        runs = [report(independent(2_000, seed)) for seed in range(6)]

        with pytest.raises(ValueError, match="after: expected as many runs as before, 6, got 5"):
            compare(runs, runs[:5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantile": 1.0}, "quantile: expected a share"),
        ({"false_alarm": 0.0}, "false_alarm: expected a share"),
        ({"least_change": 0.0}, "least_change: expected a number > 0"),
        ({"before": [[1.0]]}, "before: expected a Report"),
        ({"before": [-1.0]}, "before: expected a Report"),
    ],
)
def test_wrong_argument(changes, message):
    """The message names the argument."""
    arguments = {"before": [1.0], "after": [1.0], **changes}

    with pytest.raises(ValueError, match=message):
        compare(arguments.pop("before"), arguments.pop("after"), **arguments)
