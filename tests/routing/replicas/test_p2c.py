"""The state machine of `Replicas`: choice, learned latencies, ejection and return, zones, streams."""

import random
from collections import Counter

import pytest

from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._p2c_cy import FAILURE, IGNORED, REJECTED, SUCCESS, P2CBalancer
from streaminfer.routing.replicas._replica_stats_cy import ACTIVE, DRAINING, EJECTED, PROBING

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
S = 1_000 * MS
SLOT = 2**16 - 1
DEFAULTS = {
    "choices": 2,
    "decay_ns": 10 * S,
    "consecutive_failures": 5,
    "latency_factor": 3.0,
    "eject_ns": S,
    "max_eject_ns": 4 * S,
    "max_ejected": 0.5,
    "slow_start_ns": 10 * S,
    "seed": 1,
}


def made(count=4, types=(OutlierEjection, P2CBalancer), **changes):
    ejection_type, balancer_type = types
    settings = DEFAULTS | changes
    choices, decay_ns, seed = (settings.pop(name) for name in ("choices", "decay_ns", "seed"))
    balance = balancer_type(choices, decay_ns, ejection_type(*settings.values()), settings["slow_start_ns"], seed)
    for number in range(count):
        assert balance.add(1.0, 1.0, 0, 7919 * (number + 1), False, 0) == number
    return balance


def ask(balance, now, outcome=SUCCESS, took=10 * MS, excluded=-1):
    token = balance.choose(excluded, now)
    balance.done(token, outcome, took, now + took)
    return token & SLOT


def teach(balance, number, took, now, times=40):
    """Let a replica respond to requests, one after the other; return the instant after the last."""
    for _ in range(times):
        give(balance, number, SUCCESS, took, now)
        now += MS
    return now


def give(balance, number, outcome, took, now):
    """Send a request to one replica while the others are kept busy."""
    held = []
    while (token := balance.choose(-1, now)) & SLOT != number:
        held.append(token)
        assert len(held) < 2_000
    for other in held:
        balance.done(other, IGNORED, 0, now)
    balance.done(token, outcome, took, now)


def fail(balance, number, now, times=5, took=MS):
    for _ in range(times):
        give(balance, number, FAILURE, took, now)
    return balance.slot(number).state


@pytest.mark.parametrize("outcome", [FAILURE, REJECTED])
def test_replicas_that_serve_nothing_are_seldom_drawn(outcome):
    """Replicas that fail or reject are seldom drawn, even if they are the majority and none is ejected.

    Otherwise both of the two replicas that are drawn would often be among them.
    """
    balance = made(8, consecutive_failures=0)
    chosen = []
    for now in range(4_000):
        token = balance.choose(-1, now * 10 * MS)
        chosen.append(token & SLOT)
        served = chosen[-1] < 2
        balance.done(token, SUCCESS if served else outcome, 10 * MS if served else 0, (now + 1) * 10 * MS)
    assert sum(number >= 2 for number in chosen[2_000:]) < 300


def test_two_replicas_get_the_one_with_less_to_do():
    balance = made(2)
    first = balance.choose(-1, 0) & SLOT
    assert balance.choose(-1, 0) & SLOT == 1 - first
    assert [balance.slot(n).in_flight for n in (0, 1)] == [1, 1]


def test_equal_replicas_get_equal_shares():
    balance = made(4, latency_factor=0.0)
    counts = Counter(ask(balance, now * MS) for now in range(8_000))
    assert all(1_700 < counts[number] < 2_300 for number in range(4))


def test_weights_are_shares():
    balance = made(0, latency_factor=0.0, choices=1)
    for weight in (1.0, 3.0):
        balance.add(weight, 1.0, 0, 0, False, 0)
    counts = Counter(ask(balance, now * MS) for now in range(8_000))
    assert 2.6 < counts[1] / counts[0] < 3.4


def test_a_weight_counts_in_the_comparison_too():
    balance = made(0, latency_factor=0.0)
    balance.add(1.0, 1.0, 0, 0, False, 0)
    balance.add(3.0, 1.0, 0, 0, False, 0)
    for _ in range(8):
        balance.choose(-1, 0)
    assert balance.slot(1).in_flight == 6


@pytest.mark.parametrize("choices", [8, 100])
def test_equal_replicas_take_turns(choices):
    """Equal replicas get a request each in turn, and processes without measurements begin with different replicas."""
    firsts = set()
    for seed in range(100):
        balance = made(8, choices=choices, seed=seed)
        chosen = [balance.choose(-1, 0) & SLOT for _ in range(16)]
        assert sorted(chosen[:8]) == sorted(chosen[8:]) == list(range(8))
        firsts.add(chosen[0])
    assert firsts == set(range(8))


def test_equal_costs_stay_in_the_zone():
    """A request stays in its zone if another zone, with its penalty, costs exactly as much."""
    for seed in range(20):
        balance = made(0, choices=2, seed=seed)
        away, home = (balance.add(1.0, penalty, 0, 0, False, 0) for penalty in (2.0, 1.0))
        assert [balance.choose(-1, 0) & SLOT for _ in range(3)] == [home, home, away]


def test_comparison_of_all_needs_no_draw(plain):
    """If all replicas are compared, the balancer draws none, because each draw would be a pass over all of them."""
    uncompiled = plain("routing.replicas._p2c_cy")
    balance = made(8, (uncompiled.OutlierEjection, uncompiled.P2CBalancer), choices=8)
    for number in range(8):
        teach(balance, number, (10 + number) * MS, 0, times=1)

    balance._draws = None

    assert [ask(balance, S) for _ in range(4)] == [0] * 4


def test_one_choice_draws_each_replica_at_most_once():
    balance = made(8, choices=8)
    balance.add(1.0, 9.0, 0, 0, False, 0)  # one more than are drawn; otherwise all would be compared without a draw
    for _ in range(3):
        assert sorted(balance.choose(-1, 0) & SLOT for _ in range(8)) == list(range(8))


def shares_by_speed(choices, *took):
    """Return the share of each replica in requests that never overlap, after all latencies are measured."""
    balance = made(len(took), choices=choices, latency_factor=0.0)
    counts = Counter()
    for now in range(12_000):
        token = balance.choose(-1, now * S)
        number = token & SLOT
        counts[number] += now >= 4_000
        balance.done(token, SUCCESS, took[number], now * S + took[number])
    return [counts[number] / 8_000 for number in range(len(took))]


def test_a_fast_replica_is_drawn_more_often():
    """Two choices give a replica that is ten times faster most of the requests, not two eighths of them."""
    shares = shares_by_speed(2, MS, *[10 * MS] * 7)

    assert shares[0] > 0.55


def test_a_slow_replica_is_still_drawn():
    """However slow a replica was, it is drawn half as often as one of mean speed."""
    shares = shares_by_speed(1, 900 * MS, *[10 * MS] * 7)

    assert 0.05 < shares[0] < 0.08


def test_faster_replica_is_chosen():
    """The replica with the lower expected time is chosen, and its requests in flight count."""
    balance = made(2)
    now = teach(balance, 0, 10 * MS, 0)
    now = teach(balance, 1, 25 * MS, now)
    token = balance.choose(-1, now)
    assert token & SLOT == 0
    assert balance.expected_ns(0, now) == pytest.approx(20 * MS)
    assert balance.expected_ns(1, now) == pytest.approx(25 * MS, rel=0.02)
    assert balance.choose(-1, now) & SLOT == 0  # two places of 10 ms are still less than one of 25
    assert balance.choose(-1, now) & SLOT == 1


def test_latency_is_learned_per_request_in_flight():
    balance = made(1)
    for start in range(100):
        tokens = [balance.choose(-1, start * S) for _ in range(4)]
        for position, token in enumerate(tokens):
            balance.done(token, SUCCESS, (position + 1) * 10 * MS, start * S + (position + 1) * 10 * MS)
    assert balance.slot(0).per_place_ns == pytest.approx(10 * MS, rel=0.2)
    assert balance.slot(0).latency_ns == pytest.approx(25 * MS, rel=0.4)


def test_a_rise_counts_more_than_a_fall():
    risen, fallen = made(1), made(1)
    teach(risen, 0, 10 * MS, 0)
    teach(fallen, 0, 10 * MS, 0)
    ask(risen, S, took=20 * MS)
    ask(fallen, S, took=1)
    assert risen.slot(0).latency_ns - 10 * MS > 2.0 * (10 * MS - fallen.slot(0).latency_ns)
    assert risen.slot(0).latency_ns < 14 * MS  # but one slow response alone does not set the estimate


def test_missing_response_raises_expected_latency():
    """A response that is still missing raises the expected latency of its replica."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    owing = balance.choose(-1, now)
    balance.done(balance.choose(owing & SLOT, now), SUCCESS, 10 * MS, now)
    assert balance.expected_ns(owing & SLOT, now) == pytest.approx(20 * MS)
    assert balance.expected_ns(owing & SLOT, now + S) == S
    assert {balance.choose(-1, now + S) & SLOT for _ in range(10)} == {1 - (owing & SLOT)}


def test_unused_estimate_decays_to_the_mean():
    """The estimate of a replica without requests decays toward the mean, so that it is tried again."""
    balance = made(2, latency_factor=0.0)
    now = teach(balance, 1, 100 * MS, teach(balance, 0, 10 * MS, 0))
    assert ask(balance, now) == 0
    before = balance.expected_ns(1, now)
    later = now + 30 * S
    assert ask(balance, later) == 0
    assert 20 * MS < balance.expected_ns(1, later) < 25 * MS < before  # from 100 to near the mean of both speeds
    assert [balance.choose(-1, later) & SLOT for _ in range(3)] == [0, 0, 1]  # so it gets the third request


def test_an_old_estimate_gives_way_to_a_quick_response():
    """After a long silence, a quick response counts more than the old estimate, but a single slow one does not."""
    balance = made(2, latency_factor=0.0)
    now = teach(balance, 1, 500 * MS, teach(balance, 0, 10 * MS, 0)) + 30 * S
    give(balance, 1, SUCCESS, 10 * MS, now)
    give(balance, 0, SUCCESS, 500 * MS, now)
    assert balance.slot(1).latency_ns < 150 * MS
    assert balance.slot(0).latency_ns < 150 * MS


def test_failing_fast_does_not_look_fast():
    balance = made(2, consecutive_failures=0)
    counts = Counter()
    for now in range(2_000):
        token = balance.choose(-1, now * MS)
        broken = token & SLOT == 1
        balance.done(token, FAILURE if broken else SUCCESS, MS if broken else 10 * MS, now * MS)
        counts[token & SLOT] += 1
    assert counts[1] < 40


def test_rejections_steer_away_but_do_not_eject():
    balance = made(2)
    for now in range(200):
        token = balance.choose(-1, now * MS)
        balance.done(token, REJECTED if token & SLOT else SUCCESS, MS, now * MS)
    assert balance.slot(1).state == ACTIVE
    assert balance.slot(1).rejected == balance.slot(1).attempts < 40


# -- ejection ---------------------------------------------------------------------------------------------------


def test_consecutive_failures_eject():
    balance = made()
    assert fail(balance, 2, 0, times=4) == ACTIVE
    assert fail(balance, 2, 0, times=1) == EJECTED
    assert balance.ejected == balance.slot(2).ejections == 1
    assert 2 not in {ask(balance, 10 * MS) for _ in range(200)}


def test_success_resets_consecutive_failures():
    balance = made()
    fail(balance, 2, 0, times=4)
    teach(balance, 2, MS, 0, times=1)
    assert fail(balance, 2, 0, times=4) == ACTIVE


def test_failures_eject_nothing_if_ejection_is_off():
    """No failures eject a replica if `consecutive_failures` or `max_ejected` is 0."""
    assert fail(made(consecutive_failures=0), 2, 0, times=50) == ACTIVE
    assert fail(made(max_ejected=0.0), 2, 0, times=50) == ACTIVE


@pytest.mark.parametrize(
    ("count", "share", "most"), [(1, 1.0, 0), (2, 0.1, 1), (4, 0.5, 2), (4, 1.0, 3), (10, 0.35, 3)]
)
def test_ejected_replicas_are_capped(count, share, most):
    """At most the share `max_ejected` of the replicas is ejected."""
    balance = made(count, max_ejected=share, eject_ns=1000 * S, max_eject_ns=1000 * S)
    now = 0
    for _ in range(400):
        now += MS
        ask(balance, now, FAILURE)
    assert balance.ejected == most


def test_ejected_replica_is_probed_then_ramps_up():
    """After its ejection a replica gets one probe at a time, and then a slow start."""
    balance = made()
    fail(balance, 2, 0)
    assert balance.slot(2).until_ns == S
    balance.settle(S - 1)
    assert balance.slot(2).state == EJECTED
    balance.settle(S)
    assert (balance.slot(2).state, balance.ejected) == (PROBING, 0)
    trials = [token for _ in range(100) if (token := balance.choose(-1, S)) & SLOT == 2]
    assert len(trials) == 1  # one at a time
    balance.done(trials[0], SUCCESS, MS, S + MS)
    assert balance.slot(2).state == ACTIVE
    assert balance.ramp(2, S + MS) == 0.1
    assert balance.ramp(2, S + MS + 5 * S) == 0.5
    assert balance.ramp(2, S + MS + 10 * S) == 1.0


def test_failed_probe_extends_ejection_up_to_limit():
    """A replica that fails while it is probed is ejected for longer each time, up to a limit."""
    balance = made()
    fail(balance, 2, 0)
    lasted = []
    for _ in range(5):
        now = balance.slot(2).until_ns
        assert fail(balance, 2, now, times=1) == EJECTED
        lasted.append(balance.slot(2).until_ns - now)
    assert lasted == [2 * S, 3 * S, 4 * S, 4 * S, 4 * S]


def test_time_in_service_shortens_the_next_ejection():
    balance = made()
    fail(balance, 2, 0)
    fail(balance, 2, S, times=1)  # the second, of 2 s
    teach(balance, 2, MS, 3 * S, times=1)
    fail(balance, 2, 3 * S + S // 2)
    assert balance.slot(2).until_ns == 3 * S + S // 2 + 3 * S  # the third
    teach(balance, 2, MS, 7 * S, times=1)
    fail(balance, 2, 60 * S)
    assert balance.slot(2).until_ns == 61 * S  # the first again


def test_probe_without_a_response_is_a_failure():
    balance = made()
    fail(balance, 2, 0)
    balance.settle(S)
    while balance.choose(-1, S) & SLOT != 2:
        pass
    balance.settle(2 * S)
    assert balance.slot(2).state == PROBING
    balance.settle(2 * S + 1)
    assert balance.slot(2).state == EJECTED


@pytest.mark.parametrize("stream", [False, True])
def test_probing_replica_is_preferred_to_ejected_ones(stream):
    """While the only replica in service is probing, it gets the further requests, and ejected replicas get none."""
    balance = made(3)
    for number in range(3):
        balance.force_eject(number)
    balance.end_forced_ejection(1, 0)
    choose = (lambda: balance.choose_for_stream(7, 0)) if stream else (lambda: balance.choose(-1, 0))
    assert {choose() & SLOT for _ in range(10)} == {1}
    assert balance.panics == 0


def test_ignored_probe_makes_room_for_next():
    """A probe whose outcome is ignored makes room for the next probe."""
    balance = made()
    fail(balance, 2, 0)
    for _ in range(3):
        trials = [token for _ in range(100) if (token := balance.choose(-1, S)) & SLOT == 2]
        assert len(trials) == 1
        balance.done(trials[0], IGNORED, 0, S)


def test_requests_sent_before_ejection_do_not_count():
    """Outcomes of requests that were sent before an ejection do not count after it."""
    balance = made()
    old = [token for _ in range(100) if (token := balance.choose(-1, 0)) & SLOT == 2]
    fail(balance, 2, 0)
    balance.settle(S)
    balance.done(old.pop(), FAILURE, S, S)
    assert balance.slot(2).state == PROBING
    balance.done(old.pop(), SUCCESS, S, S)
    assert balance.slot(2).state == PROBING
    assert balance.slot(2).in_flight == len(old)


def test_slow_replica_is_ejected_as_an_outlier():
    balance = made()
    now = 0
    for number, took in enumerate((10, 11, 12)):
        now = teach(balance, number, took * MS, now)
    now = teach(balance, 3, 30 * MS, now, times=20)
    assert balance.slot(3).state == ACTIVE  # less than three times the latency of the others
    teach(balance, 3, 100 * MS, now, times=20)
    assert balance.slot(3).state == ACTIVE  # for less than three times the latency of the others
    teach(balance, 3, 100 * MS, now + 33 * MS, times=1)
    assert balance.slot(3).state == EJECTED


@pytest.mark.parametrize("outcome", [SUCCESS, IGNORED])
def test_one_slow_batch_ejects_nothing(outcome):
    """Requests in flight together share a batch, so slow or interrupted ones do not eject their replica."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    batch = [balance.choose(-1, now) for _ in range(40)]
    now += S
    for token in batch:  # half of them at each replica
        slow = token & SLOT == 0
        balance.done(token, outcome if slow else SUCCESS, S if slow else 10 * MS, now)
    assert balance.slot(0).failed == (0 if outcome == SUCCESS else 20)
    assert balance.slot(0).state == ACTIVE
    ask(balance, now, outcome, S, excluded=1)
    assert balance.slot(0).state == EJECTED


def test_a_quick_response_ejects_nothing():
    """A quick response does not eject its replica, even if an outage before it has raised the mean latency."""
    balance = made(4)
    now = 0
    for number in range(3):
        now = teach(balance, number, 10 * MS, now)
    slow = balance.slot(3)
    for _ in range(20):  # slow responses, too few to judge its latency, and then failures
        give(balance, 3, FAILURE if slow.succeeded > 6 else SUCCESS, 200 * MS, now)
        now += MS
        if slow.failed % 4 == 3:
            break
    assert slow.latency_ns > 3 * balance.slot(0).latency_ns
    assert slow.state == ACTIVE

    give(balance, 3, SUCCESS, 10 * MS, now)
    assert slow.state == ACTIVE
    give(balance, 3, SUCCESS, 200 * MS, now)
    assert slow.state == ACTIVE
    give(balance, 3, SUCCESS, 200 * MS, now + 200 * MS)
    assert slow.state == EJECTED


def test_few_samples_make_no_outlier():
    balance = made()
    now = 0
    for number in range(3):
        now = teach(balance, number, 10 * MS, now)
    now = teach(balance, 3, 100 * MS, now, times=7)
    assert balance.slot(3).state == ACTIVE
    teach(balance, 3, 100 * MS, now, times=1)
    assert balance.slot(3).state == ACTIVE
    teach(balance, 3, 100 * MS, now + 100 * MS, times=1)
    assert balance.slot(3).state == EJECTED


def test_replica_of_another_zone_is_no_outlier():
    balance = made(3)
    balance.add(1.0, 2.0, 1, 5, False, 0)
    now = 0
    for number, took in enumerate((10, 10, 10, 100)):
        now = teach(balance, number, took * MS, now) if number < 3 else now
    for _ in range(30):
        balance.drain(0) if balance.slot(0).state == ACTIVE else None
        token = balance.choose(-1, now)
        balance.done(token, SUCCESS, (100 if token & SLOT == 3 else 10) * MS, now)
        now += MS
    # alone in its zone: compared with no other replica
    assert balance.slot(3).state == ACTIVE


def test_late_cancelled_request_is_a_failure():
    """A request that is cancelled after three times the usual latency counts as a failure."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    give(balance, 0, IGNORED, 29 * MS, now)
    assert balance.slot(0).failed == 0
    give(balance, 0, IGNORED, 32 * MS, now)
    assert balance.slot(0).failed == 1


def test_queued_cancelled_request_is_no_failure():
    """A cancelled request with three before it is no failure, because four in flight take four times as long."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    tokens = [balance.choose(-1, now) for _ in range(8)]
    last = max(tokens, key=lambda token: (token & SLOT == 0, token >> 16 & 0xFFFFFF))
    balance.done(last, IGNORED, 100 * MS, now)
    assert balance.slot(0).failed == 0


def test_own_late_requests_do_not_hide_a_hang():
    """The other replicas define what is late, so a hanging replica is ejected, however slow it has become."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    for _ in range(5):
        give(balance, 0, IGNORED, 60 * MS, now)
        now += 60 * MS
    assert balance.slot(0).state == EJECTED


def test_cancelled_requests_steer_away():
    """Requests cancelled within three times the latency are no failures, but the other replica gets most requests."""
    balance = made(2)
    now = teach(balance, 1, 10 * MS, teach(balance, 0, 10 * MS, 0))
    counts = Counter()
    for _ in range(200):
        token = balance.choose(-1, now)
        counts[token & SLOT] += 1
        hangs = token & SLOT == 0
        now += 20 * MS
        balance.done(token, IGNORED if hangs else SUCCESS, (20 if hangs else 10) * MS, now)
    assert counts[0] <= 10
    assert balance.slot(0).failed == 0


def test_clock_that_jumps_back_spoils_no_estimate():
    """However far the clock jumps back, the estimated latency stays between the measured ones."""
    for back_s in (1, 10, 11, 25, 10_000):
        balance = made(1)
        now = teach(balance, 0, 10 * MS, 20_000 * S)
        token = balance.choose(-1, now)
        balance.done(token, SUCCESS, 5 * MS, now - back_s * S)
        assert 5 * MS <= balance.slot(0).latency_ns <= 10 * MS


def test_ejected_replica_is_used_if_no_other_is_left():
    """An ejected replica gets requests if no other replica is left."""
    balance = made(2)
    fail(balance, 0, 0)
    balance.drain(1)
    assert balance.choose(-1, 0) & SLOT == 0
    assert balance.panics == 1


def test_second_attempt_avoids_ejected_replicas():
    """A second attempt goes to an ejected replica only if all replicas are ejected."""
    balance = made(3)
    for number in range(2):
        balance.force_eject(number)
    assert balance.choose(2, 0) == balance.best(2, 0) == -1
    assert balance.panics == 0
    balance.force_eject(2)  # all are ejected, so requests go to ejected replicas
    assert balance.choose(2, 0) & SLOT in {0, 1}
    assert balance.panics == 1


@pytest.mark.parametrize("choices", [2, 100])
@pytest.mark.parametrize("outcome", [FAILURE, REJECTED])
def test_second_attempt_avoids_last_failures(outcome, choices):
    """If a whole zone fails or rejects, a second attempt leaves the zone before any replica is ejected."""
    balance = zoned(choices=choices)
    for number in range(4):
        give(balance, number, SUCCESS, 10 * MS, 0)
    for number in (0, 1):
        give(balance, number, outcome, MS, 0)
    assert {ask(balance, now, excluded=0) for now in range(50)} <= {2, 3}
    assert ask(balance, 50) in (0, 1)  # a first attempt still goes to the replica with the lower cost
    give(balance, 1, SUCCESS, 10 * MS, 60)
    assert ask(balance, 70, excluded=0) == 1


def test_second_attempt_avoids_failed_slow_starter():
    """A second attempt avoids a replica that starts slowly and failed last."""
    balance = made(2, latency_factor=0.0)
    for number in range(2):
        give(balance, number, SUCCESS, 50 * MS, 0)
    balance.add(1.0, 1.0, 0, 3, True, 0)
    give(balance, 2, SUCCESS, MS, 5 * S)
    give(balance, 2, FAILURE, MS, 5 * S)
    assert {ask(balance, 5 * S, took=50 * MS, excluded=0) for _ in range(20)} == {1}


def test_second_attempt_is_no_probe():
    """A second attempt is never a probe; a first attempt can be one, because it can be retried."""
    balance = made(3)
    fail(balance, 2, 0)
    assert {ask(balance, 2 * S, excluded=0) for _ in range(20)} == {1}
    assert balance.slot(2).state == PROBING


def test_second_attempt_goes_to_the_only_one_left():
    """A second attempt goes to a replica whose last request failed if there is no other."""
    balance = made(2)
    give(balance, 1, FAILURE, MS, 0)
    assert ask(balance, 0, excluded=0) == 1


def test_second_attempt_skips_replica_with_probe():
    """A second attempt is not sent to a probing replica that already has a request in flight."""
    balance = made(2)
    balance.force_eject(0)
    balance.end_forced_ejection(0, 0)
    probe = balance.choose(1, 0)
    assert probe & SLOT == 0
    assert balance.choose(1, 0) == -1
    balance.done(probe, SUCCESS, 10 * MS, 0)
    assert balance.choose(1, 0) & SLOT == 0


def test_no_replica_left():
    """Without a replica to choose, every choice returns -1."""
    balance = made(1)
    assert balance.choose(0, 0) == -1
    balance.drain(0)
    assert balance.choose(-1, 0) == balance.choose_for_stream(5, 0) == balance.best(-1, 0) == -1


# -- the fleet --------------------------------------------------------------------------------------------------


def test_added_replica_starts_slowly():
    balance = made(3, latency_factor=0.0)
    for now in range(100):
        ask(balance, now * MS)
    number = balance.add(1.0, 1.0, 0, 77, True, S)
    shares = []
    for start in (S, 6 * S, 12 * S):
        asked = [ask(balance, start + n * 1000, took=10 * MS) for n in range(4_000)]
        shares.append(asked.count(number) / 4_000)
    assert 0.005 < shares[0] < 0.06
    assert shares[0] < shares[1] - 0.05
    assert 0.2 < shares[2] < 0.3


def test_a_slot_is_used_again_once_it_is_empty():
    balance = made(2)
    token = balance.choose(1, 0)
    balance.drain(0)
    assert (balance.slot(0).state, balance.replicas) == (DRAINING, 1)
    assert {balance.choose(-1, 0) & SLOT for _ in range(20)} == {1}
    with pytest.raises(RuntimeError, match="has drained"):
        balance.remove(0)
    assert balance.add(1.0, 1.0, 0, 5, False, 0) == 2
    balance.done(token, SUCCESS, MS, MS)
    balance.remove(0)
    assert balance.add(1.0, 1.0, 0, 5, False, 0) == 0
    assert balance.slot(0).attempts == 0


def test_draining_lowers_count_of_ejected_replicas():
    """A replica that drains while it is ejected is not counted among the ejected replicas."""
    balance = made()
    fail(balance, 2, 0)
    balance.drain(2)
    assert balance.ejected == 0
    balance.drain(2)
    assert balance.replicas == 3


def test_slots_that_do_not_exist():
    balance = made(2)
    for wrong in (balance.slot, balance.drain, balance.remove):
        with pytest.raises(IndexError):
            wrong(7)


# -- zones ------------------------------------------------------------------------------------------------------


def zoned(penalty=2.0, **changes):
    balance = made(2, **changes)
    for key in (3, 4):
        balance.add(1.0, penalty, 1, key, False, 0)
    return balance


def test_home_zone_is_preferred_up_to_penalty():
    """The home zone is preferred until it is worse than another zone by the penalty."""
    balance = zoned()
    taken = [balance.choose(-1, 0) & SLOT for _ in range(12)]
    assert set(taken[:2]) == {0, 1}
    assert Counter(number > 1 for number in taken) == {False: 8, True: 4}  # two at home for each away


def fill_up(balance, quick=8, slow=40):
    """Send quick and then slow requests, one after the other, until one leaves the home zone; return its token."""
    now = 0
    for took in quick * [10 * MS] + slow * [200 * MS]:
        token = balance.choose(-1, now)
        now += took
        if token & SLOT > 1:
            return token, now - took
        balance.done(token, SUCCESS, took, now)
    return None, now


def test_full_zone_is_left_for_an_unknown_one():
    """A process whose requests never overlap leaves a full zone too: it does not expect an unknown zone to be full."""
    balance = zoned(latency_factor=0.0)
    assert fill_up(balance)[0] is not None


def test_one_response_says_what_a_zone_takes():
    """One slow response sets the expected latency of all replicas of its zone, so the others get no request."""
    balance = zoned(latency_factor=0.0)
    token, now = fill_up(balance)
    balance.done(token, SUCCESS, 800 * MS, now)
    assert {ask(balance, now, took=200 * MS) for _ in range(20)} <= {0, 1}
    assert balance.expected_ns(5 - (token & SLOT), now) == 800 * MS


def test_unknown_zone_gets_one_request_at_first():
    """An unknown zone gets one request; until this one succeeds, the zone is expected to be no better than the mean."""
    balance = zoned(latency_factor=0.0)
    token, now = fill_up(balance)
    assert {ask(balance, now, took=200 * MS) for _ in range(20)} == {0, 1}
    balance.done(token, FAILURE, MS, now)
    assert {ask(balance, now, took=200 * MS) for _ in range(20)} == {0, 1}


def test_new_replica_inherits_its_zones_latency():
    """A replica that is added to a zone starts with the expected latency of this zone."""
    balance = zoned(latency_factor=0.0)
    token, now = fill_up(balance)
    balance.done(token, SUCCESS, 800 * MS, now)
    number = balance.add(1.0, 2.0, 1, 77, False, now)
    assert balance.expected_ns(number, now) == 800 * MS


def test_knowledge_of_a_zone_fades():
    """A zone that was slow long ago is expected to be like the known replicas, even if its slow replica was removed."""
    balance = zoned(latency_factor=0.0)
    token, now = fill_up(balance)
    balance.done(token, SUCCESS, 8 * S, now)
    other = 5 - (token & SLOT)
    balance.drain(token & SLOT)
    balance.remove(token & SLOT)
    assert balance.expected_ns(other, now) == 8 * S
    assert {ask(balance, now + 3600 * S, took=200 * MS) for _ in range(5)} == {0, 1}
    assert balance.expected_ns(other, now + 3600 * S) < 210 * MS


def test_a_zone_that_is_not_full_is_not_left():
    balance = zoned(latency_factor=0.0)
    assert {ask(balance, now * S, took=(10 + now % 10) * MS) for now in range(200)} == {0, 1}


def test_unknown_zone_takes_at_most_the_mean():
    """If the known replicas were never quicker, an unknown zone is expected to have their mean latency."""
    balance = zoned(latency_factor=0.0)
    assert fill_up(balance, quick=0)[0] is None
    assert balance.expected_ns(2, S) == 200 * MS


def test_the_last_replica_is_never_ejected():
    """The last replica is not ejected even with ``max_ejected=1.0``: it gets requests although it fails."""
    balance = made(3, max_ejected=1.0)
    for number in range(3):
        fail(balance, number, 0)
    assert balance.ejected == 2
    assert balance.panics == 0


def test_requests_leave_a_zone_without_replicas():
    """If all replicas of the own zone are ejected, the other zone gets the requests without a panic."""
    balance = zoned(max_ejected=1.0)
    fail(balance, 0, 0)
    fail(balance, 1, 0)
    assert {ask(balance, 0) for _ in range(50)} == {2, 3}
    assert balance.panics == 0


def test_shares_of_zones_by_their_penalty():
    balance = made(1)
    for penalty in (2.0, 6.0):
        balance.add(1.0, penalty, 1, 5, False, 0)
    for _ in range(110):
        balance.choose(-1, 0)
    assert [balance.slot(n).in_flight for n in range(3)] == pytest.approx([66, 33, 11], abs=3)


# -- streams ----------------------------------------------------------------------------------------------------


def keys(count=2_000):
    return [random.Random(number).getrandbits(64) for number in range(count)]


def test_streams_are_sticky_and_spread_evenly():
    balance = made(4)
    places = {key: balance.of_stream(key, 0) for key in keys()}
    counts = Counter(places.values())
    assert all(420 < counts[number] < 580 for number in range(4))
    for now, (key, place) in enumerate(places.items()):
        token = balance.choose_for_stream(key, now)
        assert token & SLOT == place
        balance.done(token, SUCCESS, MS, now)


def test_streams_are_spread_by_weight():
    balance = made(0)
    balance.add(1.0, 1.0, 0, 11, False, 0)
    balance.add(3.0, 1.0, 0, 12, False, 0)
    counts = Counter(balance.of_stream(key, 0) for key in keys())
    assert 0.70 < counts[1] / 2_000 < 0.80


def test_only_streams_of_ejected_replica_move():
    """Only the streams of an ejected replica move, and they come back with it."""
    balance = made(4)
    before = {key: balance.of_stream(key, 0) for key in keys(500)}
    fail(balance, 2, 0)
    for key, place in before.items():
        now_at = balance.of_stream(key, 0)
        assert now_at != 2
        assert place in (now_at, 2)
    balance.settle(S)
    teach(balance, 2, MS, S, times=1)
    assert {key: balance.of_stream(key, 2 * S) for key in before} == before  # though it starts slowly


def test_streams_stay_while_all_replicas_are_unhealthy():
    """A health check that is wrong about all replicas moves no stream, however busy they are."""
    balance = made(4)
    before = {key: balance.of_stream(key, 0) for key in keys(200)}
    for number in range(4):
        balance.force_eject(number)
    assert {key: balance.choose_for_stream(key, 0) & SLOT for key in before} == before
    assert balance.panics == len(before)
    balance.drain(0)  # a draining replica has no streams
    assert {balance.of_stream(key, 0) for key in before} == {1, 2, 3}


def test_new_replica_takes_its_share_of_streams():
    """A new replica takes its share of the streams, and no other stream moves."""
    balance = made(4)
    before = {key: balance.of_stream(key, 0) for key in keys()}
    balance.add(1.0, 1.0, 0, 99, True, 0)
    after = {key: balance.of_stream(key, 0) for key in before}
    moved = [key for key in before if after[key] != before[key]]
    assert all(after[key] == 4 for key in moved)
    assert 300 < len(moved) < 500


def test_streams_stay_in_the_zone():
    assert {zoned().of_stream(key, 0) for key in keys(200)} == {0, 1}


# -- order of replicas ------------------------------------------------------------------------------------------


def test_best_and_ranked_send_nothing():
    """`best` and `ranked` order replicas by cost, and count no request in flight."""
    balance = made(3)
    now = 0
    for number, took in enumerate((30, 10, 20)):
        now = teach(balance, number, took * MS, now)
    assert balance.best(-1, now) == 1
    assert balance.best(1, now) == 2
    assert balance.ranked(now) == [1, 2, 0]
    assert all(not balance.slot(number).in_flight for number in range(3))


def test_best_is_never_an_ejected_replica():
    balance = made(2, latency_factor=0.0)
    teach(balance, 1, 100 * MS, teach(balance, 0, 10 * MS, 0))
    fail(balance, 0, S)
    assert balance.best(-1, S) == 1
    assert balance.best(1, S) == -1


def test_ranked_contains_selectable_replicas():
    """An ejected replica, and one whose probe is in flight, are ranked only if there is no other."""
    balance = made(3)
    fail(balance, 0, 0)
    assert balance.ranked(0) == [1, 2]
    assert sorted(balance.ranked(2 * S)) == [0, 1, 2]  # it is probing by then

    while balance.choose(-1, 2 * S) & SLOT:
        pass
    assert sorted(balance.ranked(2 * S)) == [1, 2]
    for number in (1, 2):
        balance.force_eject(number)
    assert balance.ranked(2 * S) == [0]
    balance.force_eject(0)
    assert sorted(balance.ranked(2 * S)) == [0, 1, 2]
    for number in range(3):
        balance.drain(number)
    assert balance.ranked(2 * S) == []


# -- both builds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_plain_and_compiled_agree(plain, seed):
    """The compiled and the uncompiled balancer agree after each of 3,000 random requests and outcomes."""
    draw = random.Random(seed)
    uncompiled = plain("routing.replicas._p2c_cy")
    fleets = [
        made(5, types, seed=seed, choices=1 + seed, latency_factor=3.0 if seed % 2 else 0.0)
        for types in ((OutlierEjection, P2CBalancer), (uncompiled.OutlierEjection, uncompiled.P2CBalancer))
    ]
    for fleet in fleets:
        fleet.add(2.0, 1.5, 1, 2**63 + 5, True, 0)
    out, now = [], 0
    for _ in range(3_000):
        now += draw.randrange(20 * MS)
        what = draw.random()
        if what < 0.45:
            excluded = draw.randrange(-1, 6)
            tokens = {fleet.choose(excluded, now) for fleet in fleets}
        elif what < 0.5:
            key = draw.getrandbits(64)
            tokens = {fleet.choose_for_stream(key, now) for fleet in fleets}
        elif out:
            token, at = out.pop(draw.randrange(len(out)))
            bad = token & SLOT == 3 and (now // (5 * S)) % 2
            outcome = FAILURE if bad else draw.choice([SUCCESS] * 8 + [FAILURE, REJECTED, IGNORED])
            for fleet in fleets:
                fleet.done(token, outcome, now - at, now)
            tokens = set()
        else:
            continue
        assert len(tokens) < 2
        out += [(token, now) for token in tokens if token >= 0]
        seen = [
            [
                (
                    slot.state,
                    slot.in_flight,
                    slot.failed,
                    slot.ejections,
                    slot.latency_ns,
                    slot.per_place_ns,
                    slot.success,
                )
                for slot in map(fleet.slot, range(6))
            ]
            + [fleet.best(-1, now), fleet.ranked(now), fleet.ejected, fleet.panics]
            for fleet in fleets
        ]
        assert seen[0] == seen[1]
    assert fleets[0].slot(3).ejections


def test_the_same_seed_gives_the_same_choices():
    def choices(seed):
        balance = made(8, seed=seed)
        return [ask(balance, now * MS) for now in range(200)]

    assert choices(3) == choices(3) != choices(4)
