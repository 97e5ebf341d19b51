"""SLO: outcomes that are events, the remaining budget, burn rates, and the telemetry that feeds an objective."""

import asyncio
import concurrent.futures
import math
import threading
import tracemalloc

import pytest

import streaminfer as si
from streaminfer.telemetry.objectives.alerts import AlertPair
from streaminfer.telemetry.objectives.slo import SLO, BurnSignal
from streaminfer.telemetry.statistics import SloStatistics
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


@pytest.fixture
def clock():
    return FakeClock(10**12)


@pytest.fixture
def slo(clock):
    return SLO("faces", threshold_s=0.050, objective=0.99, clock=clock)


class Unsuitable(Exception):
    pass


@pytest.mark.parametrize(
    ("outcome", "counted_as"),
    [
        (0.0, "good"),
        (0.05, "good"),
        (0.0500000001, "good"),  # rounded to the nanosecond
        (0.050000001, "late"),
        (1, "late"),
        (math.inf, "late"),
        (si.Overloaded(), "rejected"),
        (si.CircuitOpen(), "rejected"),
        (si.DeadlineExceeded(), "failed"),
        (si.BackendError(), "failed"),
        (si.Closed(), "failed"),
        (RuntimeError(), "failed"),
        (ValueError(), "failed"),
        (si.InvalidInput(), "ignored"),
        (asyncio.CancelledError(), "ignored"),
        (concurrent.futures.CancelledError(), "ignored"),
        (KeyboardInterrupt(), "ignored"),
        (GeneratorExit(), "ignored"),
        (Unsuitable(), "ignored"),
    ],
    ids=repr,
)
def test_each_outcome_is_counted_once(clock, outcome, counted_as):
    slo = SLO("x", threshold_s=0.05, ignore=[Unsuitable], clock=clock)
    slo.record(outcome)
    figures = {
        "good": slo.total - slo.bad,
        "late": slo.late,
        "failed": slo.failed,
        "rejected": slo.rejected,
        "ignored": slo.ignored,
    }
    assert figures == {**dict.fromkeys(figures, 0), counted_as: 1}
    assert slo.total == (counted_as != "ignored")


@pytest.mark.parametrize(
    ("timeout_s", "counted_as"), [(0.019, "ignored"), (0.020, "failed"), (None, "failed")], ids=repr
)
def test_less_time_than_any_response_took_is_no_event(clock, timeout_s, counted_as):
    """A request that gave less time than the quickest response took cannot spend the budget; any other can."""
    slo = SLO("x", threshold_s=0.05, clock=clock)
    slo.record(si.DeadlineExceeded(), timeout_s)
    assert (slo.failed, slo.ignored) == (1, 0)  # there was no response yet, so the service may be down
    for latency_s in (0.030, 0.020, 0.040):
        slo.record(latency_s)
    slo.record(si.BackendError(), timeout_s)
    slo.record(si.Overloaded(), timeout_s)
    assert (slo.failed, slo.rejected, slo.ignored) == (2, 1, 0)

    slo.record(si.DeadlineExceeded(), timeout_s)

    assert (slo.failed - 2, slo.ignored) == ((0, 1) if counted_as == "ignored" else (1, 0))


def test_misses_of_a_service_that_is_too_slow_count(clock):
    """If no response was good, the service is at fault, not the deadline."""
    slo = SLO("x", threshold_s=0.05, clock=clock)
    slo.record(0.051)  # of a request with more time

    slo.record(si.DeadlineExceeded(), 0.049)

    assert (slo.late, slo.failed, slo.ignored) == (1, 1, 0)


@pytest.mark.parametrize("outcome", [-0.1, math.nan, "0.1", True, None, KeyError])
def test_outcome_of_wrong_type_or_value_raises(slo, outcome):
    """An outcome that is neither a latency nor an error raises and is not counted."""
    with pytest.raises((TypeError, ValueError), match="outcome: expected"):
        slo.record(outcome)
    assert slo.total == slo.ignored == 0


def test_budget_and_burn_rate(slo, clock):
    assert (slo.budget_remaining(), slo.burn_rate(60.0)) == (1.0, 0.0)
    for _ in range(995):
        slo.record(0.01)
    for _ in range(5):
        slo.record(0.06)
    assert slo.budget_remaining() == pytest.approx(0.5)
    assert slo.burn_rate(60.0) == pytest.approx(0.5)
    clock.advance(3600.0)
    for _ in range(100):
        slo.record(si.BackendError())
    assert slo.burn_rate(300.0) == pytest.approx(100.0)
    assert slo.burn_rate(7200.0) == pytest.approx(105 / 1100 / 0.01)
    assert slo.budget_remaining() == pytest.approx(1 - 105 / 11)
    clock.advance(31 * 86400.0)
    assert (slo.budget_remaining(), slo.burn_rate(slo.period_s)) == (1.0, 0.0)


def test_window_is_not_rounded_down(clock):
    """A window of 1.001 s, which is 1,000,999,999.9999999 ns as a float, is not rounded down."""
    slo = SLO("faces", threshold_s=0.050, objective=0.99, period_s=1.001, clock=clock)
    clock.now_ns += 5 * slo.width_ns * 4 ** (slo.levels - 1) - 1  # the last instant of a bucket
    slo.record(1.0)

    clock.now_ns += 1_001_000_000

    assert 1.0 - slo.burn_rate(1.001) == slo.budget_remaining() == pytest.approx(-99.0)


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan, math.inf, 30 * 86400.1, "60", None])
def test_impossible_window_is_an_error(slo, window_s):
    with pytest.raises((TypeError, ValueError), match="window_s: expected"):
        slo.burn_rate(window_s)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": 3}, "name"),
        ({"threshold_s": 0.0}, "threshold_s"),
        ({"threshold_s": math.inf}, "threshold_s"),
        ({"objective": 1.0}, "objective"),
        ({"objective": 0}, "objective"),
        ({"objective": 0.9999999999999}, "objective"),
        ({"objective": "0.9"}, "objective"),
        ({"objective": True}, "objective"),
        ({"period_s": 0.5}, "period_s"),
        ({"period_s": 1e12}, "period_s"),
        ({"minimum_events": 0}, "minimum_events"),
        ({"alert_pairs": [3]}, "alert_pairs"),
        ({"alert_pairs": 3}, "alert_pairs"),
        ({"ignore": ValueError}, "ignore"),
        ({"alert_pairs": [AlertPair(2.0, 100.0, 1.0)], "period_s": 99.0, "signal": None}, "alert_pairs"),
        ({"signal": 60.0}, "signal"),
        ({"signal": BurnSignal(window_s=100.0), "period_s": 99.0}, "signal"),
        ({"ignore": [3]}, "ignore"),
        ({"ignore": [int]}, "ignore"),
        ({"clock": 3}, "clock"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=f"{message}: expected"):
        SLO(**{"name": "x", "threshold_s": 1.0, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_s": 0.0}, "window_s"),
        ({"short_s": 61.0}, "short_s"),
        ({"short_s": 0.0}, "short_s"),
        ({"starts_at": 0.0}, "starts_at"),
        ({"starts_at": "6"}, "starts_at"),
        ({"ends_at": 7.0}, "ends_at"),
        ({"ends_at": math.nan}, "ends_at"),
        ({"minimum_events": 0}, "minimum_events"),
        ({"minimum_events": 2**63}, "minimum_events"),
    ],
)
def test_bad_signals_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=f"{message}: expected"):
        BurnSignal(**settings)


def test_threshold_may_be_any_number_of_seconds(clock):
    """With a threshold that is longer than any clock runs, no response is late."""
    slo = SLO("x", threshold_s=1e300, clock=clock)
    slo.record(1e9)
    assert (slo.statistics().good, slo.statistics().bad) == (1, 0)


@pytest.mark.parametrize("grace_s", [1e12, 1e300])
def test_grace_may_last_for_good(grace_s, clock):
    """A grace time that is longer than any clock runs does not end."""
    slo = SLO("x", threshold_s=1.0, signal=BurnSignal(grace_s=grace_s), clock=clock)
    for _ in range(100):
        clock.advance(3600.0)
        slo.record(2.0)
    assert not slo.burning()


def test_memory_does_not_grow(slo, clock):
    """Two periods of events keep no more memory than a minute of events."""
    for _ in range(500):
        slo.record(0.01)
        clock.advance(0.1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            slo.record(0.01)
            slo.burning()
            clock.advance(17280.0)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 4096
    assert slo.levels * 256 * 3 * 8 < 65536


def test_stack_clock_is_bound_once_and_time_goes_on():
    """The clock of a stack is bound once, and time continues; an objective's own clock stays."""
    slo = SLO("x", threshold_s=1.0)
    slo.record(2.0)
    clock = FakeClock(5)
    slo.bind_clock(clock)
    slo.bind_clock(lambda: 10**18)
    assert slo.burn_rate(60.0) == pytest.approx(100.0)
    clock.advance(62.0)
    assert slo.burn_rate(60.0) == 0.0
    given = SLO("x", threshold_s=1.0, clock=clock)
    given.bind_clock(lambda: 10**18)
    given.record(2.0)
    assert given.burn_rate(1.0) == pytest.approx(100.0)


@pytest.mark.usefixtures("switch_often")
def test_nothing_is_lost_when_threads_record_at_once(clock):
    slo = SLO("x", threshold_s=0.05, clock=clock)

    def hammer():
        for _ in range(2000):
            slo.record(0.01)
            slo.record(0.1)
            clock.now_ns += 10_000_000

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (slo.total, slo.bad, slo.late) == (16_000, 8000, 8000)
    assert slo.window(slo.period_ns) == (16_000, 8000, 0)


def test_totals_are_of_one_moment(clock):
    """A late response that another thread records between two reads never counts as good, or ``good`` would fall."""

    class Interrupted(SLO):
        def burning(self):
            self.record(1.0)
            return super().burning()

    slo = Interrupted("x", threshold_s=0.05, clock=clock)
    for number in range(3):
        s = slo.statistics()
        assert (s.totals["good"], s.totals["late"]) == (0, number)


def test_statistics_repr_and_html(slo, clock):
    for _ in range(98):
        slo.record(0.01)
    slo.record(0.06)
    slo.record(si.Overloaded())
    slo.record(si.InvalidInput())
    s = slo.statistics()
    assert isinstance(s, SloStatistics)
    assert (s.good, s.bad, s.rejected, s.ignored, s.share_good) == (98, 2, 1, 1, 0.98)
    assert s.budget_remaining == slo.budget_remaining() == pytest.approx(-1.0)
    assert list(s.burn_rates) == [300.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0, 259200.0]
    assert s.burn_rates[300.0] == pytest.approx(2.0)
    assert (s.burning, s.alerts, s.callback_errors) == (False, (), 0)
    with pytest.raises(AttributeError):
        s.good = 3
    assert repr(slo) == "<SLO 'faces': 0.99 within 0.05 s, -100.0% of the budget left>"
    assert repr(s) == "<SloStatistics 'faces': 98 good, 2 bad, -100.0% of the budget left>"
    page = slo._repr_html_()
    assert all(
        text in page for text in ("<td>-100.0%</td>", "0.99 within 50 ms", "burn rate, 5 min", "burn rate, 3 days")
    )
    fresh = SLO("<b>", threshold_s=1.0, clock=clock)
    assert math.isnan(fresh.statistics().share_good)
    assert fresh.statistics().budget_remaining == 1.0
    assert "&lt;b&gt;" in fresh._repr_html_()


def test_snapshot_has_the_active_alerts(slo, clock):
    clock.advance(400.0)
    for _ in range(200):
        slo.record(si.Closed())
    s = slo.statistics()
    assert [alert.severity for alert in s.alerts] == ["page"]
    assert repr(s).endswith("1 alerts>")
    assert "page: &#x27;faces&#x27; burns at 100" in s._repr_html_()


def test_plot_ends_at_the_remaining_budget(slo, clock):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert slo.plot(axes) is axes  # before the first event
    for hour in range(100):
        for number in range(100):
            slo.record(0.06 if hour >= 50 and number == 0 else 0.01)
        clock.advance(3600.0)
    figure = Figure()
    axes = figure.add_subplot()
    slo.plot(axes)
    budget = axes.lines[0]
    assert budget.get_ydata()[0] == 1.0
    assert budget.get_ydata()[-1] == pytest.approx(slo.budget_remaining()) == pytest.approx(0.5)
    assert budget.get_xdata()[-1] == 0.0
    assert axes.get_xlabel() == "days from now"
    assert axes.get_title() == "faces"
    burn = figure.axes[1].patches[0].get_data().values
    assert burn[:40].max() == 0.0
    assert burn.max() == pytest.approx(1.0)
    assert slo.plot() is not axes


def test_telemetry_feeds_its_objective():
    """Telemetry feeds its objective; in virtual time latencies are exact: 10 ms are good, 60 ms are late."""

    async def main(loop):
        slow = iter([0.01, 0.06, 0.01, 0.01])
        backend = ScriptedBackend(["a"], ["b"], ZeroDivisionError("batch"), HANG, duration_s=lambda rows: next(slow))
        slo = SLO("t", threshold_s=0.05)
        telemetry = si.Telemetry("t", slo=slo)
        async with si.Stack(telemetry, si.AdaptiveBatcher(max_batch_size=1), backend, clock=loop.clock) as stack:
            for _ in range(3):
                await asyncio.gather(stack(1.0), return_exceptions=True)
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.02)
            call.cancel()
            await asyncio.wait([call])
            with pytest.raises(si.InvalidInput):
                await stack(1.0, priority="x")
        return slo, stack.statistics()["Telemetry"]

    slo, s = run(main)
    assert (slo.total, slo.late, slo.failed, slo.rejected) == (3, 1, 1, 0)
    assert s.outcomes["cancelled"] == 1
    assert slo.ignored == s.requests - 3
    assert s.slo == slo.statistics()
    assert (s.slo.good, s.slo.bad) == (1, 2)
    assert "<caption>t</caption>" in s._repr_html_()
    assert si.Telemetry().statistics().slo is None


def test_telemetry_of_functions_feeds_its_objective():
    """Telemetry around functions feeds its objective."""
    clock = FakeClock(3)
    slo = SLO("f", threshold_s=0.2)
    telemetry = si.Telemetry("f", slo=slo, clock=clock)

    def work(seconds):
        clock.advance(seconds)
        if seconds > 1:
            raise KeyError

    async def work_async(seconds):
        work(seconds)

    telemetry.wrap(work)(0.1)
    asyncio.run(telemetry.wrap(work_async)(0.3))
    with pytest.raises(KeyError):
        telemetry.wrap(work)(2.0)
    assert (slo.total, slo.late, slo.failed) == (3, 1, 1)
    clock.advance(3600.0)
    assert slo.burn_rate(60.0) == 0.0, "the telemetry's clock is the objective's"


def test_an_objective_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="slo: expected an SLO or None"):
        si.Telemetry(slo=0.05)
