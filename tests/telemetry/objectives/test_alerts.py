"""Alerts of an error budget: the firing and the end of pairs, and callbacks, none of which harms a request."""

import asyncio
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.errors import BackendError
from streaminfer.telemetry.objectives.alerts import AlertPair, AlertStates, workbook_pairs
from streaminfer.telemetry.objectives.slo import SLO
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture
def clock():
    return FakeClock()


def watched(clock, **settings):
    slo = SLO("faces", threshold_s=0.05, objective=0.99, clock=clock, **settings)
    told = []
    slo.on_alert(told.append)
    return slo, told


def traffic(slo, clock, seconds, bad_share, per_second=2):
    """Record evenly spread events; of each 100 events, the first ``100 * bad_share`` are bad."""
    for number in range(round(seconds * per_second)):
        slo.record(BackendError() if number % 100 < 100 * bad_share else 0.01)
        clock.advance(1 / per_second)


def test_default_pairs_are_those_of_the_sre_workbook():
    assert workbook_pairs() == (
        AlertPair(14.4, HOUR_S, 300.0, "page"),
        AlertPair(6.0, 6 * HOUR_S, 1800.0, "page"),
        AlertPair(3.0, DAY_S, 2 * HOUR_S, "ticket"),
        AlertPair(1.0, 3 * DAY_S, 6 * HOUR_S, "ticket"),
    )
    # the share of the budget that a pair lets pass is the same for each period
    for period_s in (60.0, DAY_S, 30 * DAY_S, 90 * DAY_S):
        shares = [pair.burn_rate * pair.long_s / period_s for pair in workbook_pairs(period_s)]
        assert shares == pytest.approx([0.02, 0.05, 0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 2.0, 1.0), "burn_rate"),
        (("1", 2.0, 1.0), "burn_rate"),
        ((float("inf"), 2.0, 1.0), "burn_rate"),
        ((1.0, 0.0, 1.0), "long_s"),
        ((1.0, 2.0, 2.0), "short_s"),
        ((1.0, 2.0, -1.0), "short_s"),
        ((1.0, 2.0, 1.0, "mail"), "severity"),
    ],
)
def test_bad_pairs_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"{message}: expected"):
        AlertPair(*arguments)


def test_unreachable_burn_rates_are_lowered(clock):
    """Burn rates that a loose objective cannot reach are lowered."""
    slo = SLO("x", threshold_s=1.0, objective=0.9, clock=clock)
    assert [pair.burn_rate for pair in slo.alert_pairs] == pytest.approx([8.0, 6.0, 3.0, 1.0])
    assert slo.signal.starts_at == 6.0
    looser = SLO("x", threshold_s=1.0, objective=0.5, clock=clock)
    assert looser.signal.starts_at == pytest.approx(1.6)
    clock.advance(HOUR_S)
    for _ in range(100):
        slo.record(2.0)
    assert slo.alerts()[0].pair.burn_rate == pytest.approx(8.0)


def test_a_fast_burn_pages_and_is_resolved(clock):
    slo, told = watched(clock)
    traffic(slo, clock, HOUR_S, 0.0)
    assert told == []
    began_ns = clock.now_ns
    traffic(slo, clock, 900.0, 0.6)
    (page,) = [alert for alert in told if alert.pair.burn_rate == 14.4]
    assert (page.slo, page.severity, page.firing) == ("faces", "page", True)
    # 60 % bad events burn at a rate of 60, which is 14.4 over the hour after 0.24 hours
    assert (page.since_ns - began_ns) / 1e9 == pytest.approx(0.24 * HOUR_S, rel=0.03)
    assert page.long_burn_rate == pytest.approx(14.4, rel=0.05)
    assert page.short_burn_rate == pytest.approx(60.0, rel=0.05)
    assert page in slo.alerts() or slo.alerts()[0].since_ns == page.since_ns
    assert str(page).startswith("page: 'faces' burns at 14.")
    ended_ns = clock.now_ns
    traffic(slo, clock, 600.0, 0.0)
    (resolved,) = [alert for alert in told if alert.pair.burn_rate == 14.4 and not alert.firing]
    assert resolved.since_ns == page.since_ns
    assert 0 < (resolved.at_ns - ended_ns) / 1e9 <= 300.0 * 64 / 63 + 10
    assert str(resolved).startswith("resolved page: 'faces'")
    assert 14.4 not in [alert.pair.burn_rate for alert in slo.alerts()]


def test_a_slow_burn_makes_a_ticket_only(clock):
    slo, told = watched(clock)
    traffic(slo, clock, 8 * HOUR_S, 0.04, per_second=0.05)
    assert {alert.severity for alert in told} == {"ticket"}
    assert {alert.pair.burn_rate for alert in slo.alerts()} == {3.0, 1.0}


def test_few_events_do_not_fire(clock):
    slo, told = watched(clock, minimum_events=50)
    clock.advance(DAY_S)
    for _ in range(49):
        slo.record(BackendError())
    assert (slo.alerts(), told) == ((), [])
    slo.record(BackendError())
    assert [alert.pair.burn_rate for alert in slo.alerts()] == [14.4, 6.0, 3.0, 1.0]
    assert [alert.severity for alert in told] == ["page", "page", "ticket", "ticket"]


def test_a_cold_start_does_not_fire(clock):
    slo, _ = watched(clock)
    for _ in range(1000):
        slo.record(BackendError())
    clock.advance(299.0)
    assert slo.alerts() == ()
    clock.advance(1.0)
    assert [alert.pair.burn_rate for alert in slo.alerts()] == [14.4]


def test_alert_ends_without_traffic_when_read(clock):
    """Without traffic, an alert ends when `alerts` is called."""
    slo, told = watched(clock)
    clock.advance(600.0)
    for _ in range(200):
        slo.record(BackendError())
    assert len(slo.alerts()) == 1
    clock.advance(DAY_S * 4)
    assert slo.alerts() == ()
    assert [alert.firing for alert in told] == [True, False]


def test_without_pairs_nothing_fires(clock):
    slo, told = watched(clock, alert_pairs=())
    clock.advance(DAY_S)
    for _ in range(1000):
        slo.record(BackendError())
    assert (slo.alerts(), told, slo.statistics().burn_rates) == ((), [], {})


def test_alert_at_the_threshold_does_not_flap():
    """If the rates cross the limit back and forth by 5 %, the alert begins once and does not end."""
    states = AlertStates("x", (AlertPair(10.0, 100.0, 10.0),), 1)
    changes = [
        alert
        for step in range(100)
        for alert in states.update(step, 50.0, lambda _, step=step: (9, 10.5 if step % 2 else 9.5))
    ]
    assert [(alert.firing, alert.at_ns) for alert in changes] == [(True, 1)]
    (ended,) = states.update(100, 50.0, lambda window_s: (9, 8.9 if window_s == 10.0 else 20.0))
    assert (ended.firing, ended.since_ns, ended.at_ns) == (False, 1, 100)
    assert states.firing() == ()


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20), st.integers(0, 20), st.floats(0, 20)), max_size=40))
def test_every_beginning_has_one_end(readings):
    states = AlertStates("x", (AlertPair(10.0, 100.0, 10.0),), 10)
    firing = False
    for now, (long_rate, short_rate, seen, age_s) in enumerate(readings):
        rates = {100.0: (seen, long_rate), 10.0: (seen, short_rate)}
        changes = states.update(now, age_s, rates.__getitem__)
        lower = min(long_rate, short_rate)
        expected = lower >= 9.0 if firing else lower >= 10.0 and seen >= 10 and age_s >= 10.0
        assert [alert.firing for alert in changes] == ([expected] if expected != firing else [])
        firing = expected
        assert len(states.firing()) == firing


@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError()])
def test_failing_callback_harms_no_other_callback(clock, caplog, error):
    slo = SLO("faces", threshold_s=0.05, clock=clock)
    told = []

    @slo.on_alert
    def broken(alert):
        raise error

    slo.on_alert(told.append)
    clock.advance(400.0)
    with caplog.at_level(logging.ERROR, logger="streaminfer.slo"):
        for _ in range(200):
            slo.record(BackendError())
            clock.advance(0.1)
    assert slo.total == 200
    assert [alert.firing for alert in told] == [True]
    assert slo.callback_errors == slo.statistics().callback_errors == 1
    assert "SLO 'faces': the listener " in caplog.text
    assert "broken failed on: page: 'faces' burns at" in caplog.text
    slo.remove_callback(broken)
    slo.remove_callback(broken)
    clock.advance(DAY_S * 4)
    slo.alerts()
    assert (slo.callback_errors, len(told)) == (1, 2)


def test_interrupt_in_callback_is_not_swallowed(clock):
    """A `KeyboardInterrupt` in a callback is not swallowed, and the lock is released."""
    slo = SLO("x", threshold_s=0.05, clock=clock)

    @slo.on_alert
    def interrupted(alert):
        raise KeyboardInterrupt

    clock.advance(400.0)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(200):
            slo.record(BackendError())
            clock.advance(0.1)
    slo.remove_callback(interrupted)
    told = []
    slo.on_alert(told.append)
    clock.advance(DAY_S * 4)
    slo.alerts()
    assert [alert.firing for alert in told] == [False], "the lock was given back"


def test_a_callback_may_use_the_objective(clock):
    slo = SLO("x", threshold_s=0.05, clock=clock)
    seen = []

    @slo.on_alert
    def curious(alert):
        slo.record(0.01)
        seen.append((alert.firing, len(slo.alerts()), slo.statistics().burning in {True, False}))

    clock.advance(400.0)
    for _ in range(200):
        slo.record(BackendError())
        clock.advance(0.1)
    assert seen == [(True, 1, True)]


def test_uncallable_callback_is_an_error(clock):
    with pytest.raises(TypeError, match="callback: expected a callable"):
        SLO("x", threshold_s=0.05, clock=clock).on_alert(3)


def test_threads_report_each_change_once_in_order(clock):
    """If several threads record and read, each change of an alert is reported once and in order."""
    slo = SLO("x", threshold_s=0.05, clock=clock)
    told = []
    slo.on_alert(told.append)
    clock.advance(400.0)

    def ask():
        for _ in range(20):
            for _ in range(60):
                slo.record(BackendError())
            slo.alerts()
            clock.advance(4000.0)
            slo.alerts()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slo.alerts()
    for pair in slo.alert_pairs:
        firing = [alert.firing for alert in told if alert.pair == pair]
        assert firing == [number % 2 == 0 for number in range(len(firing))]
    assert told
