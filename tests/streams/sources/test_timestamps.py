"""Repair of timestamps that repeat, jump, wrap, drift or are missing, and the pace of a file."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams.sources.timestamps import MAX_LAG_NS, Pacer, Stamp, TimestampRepair

MS = 1_000_000
BASE = Fraction(1, 1_000)
RTP = Fraction(1, 90_000)


def live(items, time_base=BASE):
    repair = TimestampRepair(live=True)
    return [repair.stamp(pts, time_base, 0, arrival_ns) for pts, arrival_ns in items]


items = st.lists(
    st.tuples(
        st.none() | st.just(7) | st.integers(-(2**34), 2**34),
        st.integers(0, 20_000 * MS),
        st.sampled_from([0, 20 * MS, 40 * MS]),
        st.booleans(),
    ),
    min_size=1,
)


@given(items, st.booleans())
def test_instants_and_positions_never_go_back(steps, is_live):
    """Positions and capture instants only go forward for any timestamps, and no instant is in the future."""
    repair = TimestampRepair(live=is_live)
    now_ns, before = 1_000, None
    for pts, elapsed_ns, duration_ns, restart in steps:
        now_ns += elapsed_ns
        if restart:
            repair.restart()
        stamp = repair.stamp(pts, RTP, duration_ns, now_ns)
        assert stamp.captured_ns <= now_ns
        if before is None:
            assert (stamp.media_ns, stamp.discontinuity) == (0, False)
        else:
            assert stamp.media_ns >= before.media_ns
            assert stamp.captured_ns >= before.captured_ns
            assert stamp.discontinuity or not restart
        before = stamp


@given(st.lists(st.integers(0, 200), min_size=2, max_size=50), st.integers(-(10**9), 10**9))
def test_delay_of_the_network_is_part_of_the_age(delays_ms, offset):
    """An item's capture instant is its timestamp plus the smallest delay so far; the rest of its delay is its age."""
    arrivals = [(offset + 40 * n, (1_000 + 40 * n + delay) * MS) for n, delay in enumerate(delays_ms)]
    arrivals = [(pts, max(ns for _, ns in arrivals[: n + 1])) for n, (pts, _) in enumerate(arrivals)]
    stamps = live(arrivals)
    smallest = min(arrival - 40 * MS * n for n, (_, arrival) in enumerate(arrivals))
    assert stamps[-1].media_ns == 40 * MS * (len(delays_ms) - 1)
    # all items are within the two windows of 5 s
    assert stamps[-1].captured_ns == max(smallest + stamps[-1].media_ns, *(s.captured_ns for s in stamps[:-1]))
    assert not any(stamp.discontinuity for stamp in stamps)


def test_drift_of_the_clocks_is_followed():
    """If the clock of a medium is 200 ppm slow, its items are never more than two windows of drift too old."""
    stamps = live([(40 * n, round(40.008 * n * MS)) for n in range(25 * 600)])
    ages = [round(40.008 * n * MS) - stamp.captured_ns for n, stamp in enumerate(stamps)]
    assert max(ages) <= 10.1e9 * 200e-6


@pytest.mark.parametrize("bits", [32, 33])
def test_wrap_continues_the_timeline(bits):
    """Timestamps that wrap after 32 or 33 bits continue the timeline."""
    first = 2**bits - 90_000
    stamps = live([((first + 45_000 * n) % 2**bits, 500 * MS * n) for n in range(6)], RTP)
    assert [stamp.media_ns for stamp in stamps] == [500 * MS * n for n in range(6)]
    assert not any(stamp.discontinuity for stamp in stamps)


@pytest.mark.parametrize("jump", [-600, -10_000_000, 6_000, 10_000_000])
def test_timestamp_jump_keeps_capture_times(jump):
    """A jump of the timestamps is a discontinuity and does not change the capture instants."""
    stamps = live([(40 * n + (jump if n >= 5 else 0), 40 * n * MS) for n in range(10)])
    assert [stamp.captured_ns for stamp in stamps] == [40 * n * MS for n in range(10)]
    assert [stamp.discontinuity for stamp in stamps] == [n == 5 for n in range(10)]


def test_small_step_back_is_disorder():
    """A timestamp somewhat before the last one counts as the same position."""
    stamps = live([(0, 0), (40, 40 * MS), (20, 41 * MS), (80, 80 * MS)])
    assert [stamp.media_ns // MS for stamp in stamps] == [0, 40, 40, 80]
    assert not any(stamp.discontinuity for stamp in stamps)


def test_constant_timestamps_count_as_missing():
    """Live items that all have the same timestamp count as captured on arrival, and the timeline continues."""
    arrivals_ms = [0, 40, 80, 120, 170, 200, 6_000]
    stamps = live([(7, ms * MS) for ms in arrivals_ms])
    assert [stamp.media_ns // MS for stamp in stamps] == [0, 0, 0, 120, 170, 200, 6_000]
    assert [stamp.captured_ns // MS for stamp in stamps[3:]] == [120, 170, 200, 6_000]
    assert not any(stamp.discontinuity for stamp in stamps)


@pytest.mark.parametrize("after", [8, 10_000])
def test_timestamps_count_again_when_they_move(after):
    """Timestamps that move again after a run of equal ones count again."""
    items = [(7, 40 * n * MS) for n in range(30)] + [(after + 40 * n, 40 * (30 + n) * MS) for n in range(30)]
    assert [stamp.media_ns // MS for stamp in live(items)[-29:]] == [40 * n for n in range(31, 60)]


def test_equal_timestamps_are_one_position():
    """A picture that is sent a second time, late, has the capture instant of the first one."""
    stamps = live([(0, 0), (40, 40 * MS), (40, 900 * MS), (80, 901 * MS)])
    assert [stamp.media_ns // MS for stamp in stamps] == [0, 40, 40, 80]
    assert [stamp.captured_ns // MS for stamp in stamps] == [0, 40, 40, 80]


def test_missing_timestamps_are_arrivals():
    """Live items without timestamps count as captured on arrival."""
    stamps = live([(None, 0), (None, 70 * MS), (None, 95 * MS)])
    assert [(stamp.media_ns, stamp.captured_ns) for stamp in stamps] == [(t * MS, t * MS) for t in (0, 70, 95)]


def test_first_timestamp_after_missing_ones_is_no_jump():
    stamps = live([(None, 0), (7_000_000, 40 * MS), (7_000_040, 80 * MS)])
    assert [stamp.media_ns // MS for stamp in stamps] == [0, 40, 80]
    assert not any(stamp.discontinuity for stamp in stamps)


def test_restart_continues_the_timeline():
    """A new connection continues the timeline with a discontinuity."""
    repair = TimestampRepair(live=True)
    repair.stamp(5_000, BASE, 0, 0)
    repair.stamp(5_040, BASE, 0, 40 * MS)
    repair.restart()
    assert repair.stamp(123, BASE, 0, 3_000 * MS) == Stamp(3_000 * MS, 3_000 * MS, True)
    assert repair.stamp(163, BASE, 0, 3_040 * MS) == Stamp(3_040 * MS, 3_040 * MS, False)


def test_stall_counts_as_age_until_forgotten():
    """The delay of a stall without loss counts as age until it is forgotten.

    Items that a stalled connection delivers late are old.
    Items of a sender whose timestamps stood still during a pause look the same, and are fresh again after 10 s.
    """
    stamps = live([(40 * n, (40 * n + (1_000 if n >= 25 else 0)) * MS) for n in range(25 * 15)])
    assert (1_000 + 40 * 30) * MS - stamps[30].captured_ns == 1_000 * MS
    assert (1_000 + 40 * 374) * MS - stamps[374].captured_ns == 0


def test_file_may_pause_for_a_minute_but_not_for_a_day():
    repair = TimestampRepair(live=False)
    steps = [0, 40, 50_040, 86_400_000, 86_400_040, 100]
    stamps = [repair.stamp(pts, BASE, 0, n) for n, pts in enumerate(steps)]
    assert [stamp.discontinuity for stamp in stamps] == [False, False, False, True, False, True]
    assert [stamp.media_ns // MS for stamp in stamps] == [0, 40, 50_040, 100_040, 100_080, 100_120]
    assert [stamp.captured_ns for stamp in stamps] == list(range(6))


@given(st.lists(st.tuples(st.integers(0, 500 * MS), st.integers(0, 400 * MS)), min_size=1))
def test_items_are_due_at_their_media_intervals(steps):
    """Items are due at the intervals that they have in the medium.

    No item is due early, and only an item that is more than 0.2 s late moves the items after it.
    """
    pacer = Pacer()
    media_ns, now_ns, before = 0, 1_000, None
    for step_ns, work_ns in steps:
        media_ns += step_ns
        now_ns += work_ns
        due_ns = pacer.due_ns(media_ns, now_ns)
        assert now_ns - due_ns <= MAX_LAG_NS
        if before is not None:
            assert due_ns - before == step_ns or due_ns == now_ns > before + step_ns + MAX_LAG_NS
        before, now_ns = due_ns, max(now_ns, due_ns)


def test_reader_that_pauses_pauses_the_file():
    pacer = Pacer()
    assert pacer.due_ns(0, 1_000 * MS) == 1_000 * MS
    assert pacer.due_ns(40 * MS, 9_000 * MS) == 9_000 * MS
    assert pacer.due_ns(80 * MS, 9_001 * MS) == 9_040 * MS
