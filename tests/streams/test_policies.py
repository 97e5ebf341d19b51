"""Frame policies: the frames that they take, and the arguments that they reject."""

from typing import ClassVar, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.streams import Block, EveryNth, LatestOnly, TargetRate
from streaminfer.streams.policies import RateSelector
from streaminfer.testing import ScriptedBackend

MS = 1_000_000


def taken(policy, captures_ns):
    selector = policy.make_selector()
    return [captured_ns for captured_ns in captures_ns if selector.takes(captured_ns)]


@pytest.mark.parametrize(
    ("policy", "max_waiting", "waits"),
    [
        (LatestOnly(), 1, False),
        (Block(), 4, True),
        (Block(max_waiting=9), 9, True),
        (EveryNth(3), 1, False),
        (EveryNth(3, then=Block(2)), 2, True),
        (TargetRate(5), 1, False),
    ],
)
def test_policy_declares_its_queue_size_and_wait(policy, max_waiting, waits):
    """A policy declares how many frames can wait and whether it holds the source."""
    assert (policy.max_waiting, policy.waits) == (max_waiting, waits)


@pytest.mark.parametrize("kind", [Block, LatestOnly, EveryNth, TargetRate])
def test_attributes_are_no_class_variables(kind):
    """Policies have no class variables, because Pyright accepts none as an attribute of the protocol `FramePolicy`."""
    assert not [name for name, hint in get_type_hints(kind).items() if get_origin(hint) is ClassVar]


def test_latest_only_and_block_take_every_frame():
    assert LatestOnly().make_selector() is None
    assert Block().make_selector() is None


@given(st.integers(1, 9), st.integers(0, 60))
def test_every_nth_takes_the_first_of_each_n(n, frames):
    assert taken(EveryNth(n), range(frames)) == list(range(0, frames, n))


@given(st.integers(1, 60), st.floats(1.0, 40.0))
def test_a_target_rate_is_not_exceeded(fps, rate):
    """Over ten seconds of an even source, the lower of target and source rate is taken, or at most 15 % less.

    The first frame is taken at once, and the last one can come an eighth of the interval early.
    """
    captures_ns = [round(number * 1e9 / fps) for number in range(10 * fps)]

    count = len(taken(TargetRate(rate), captures_ns))

    wanted = min(rate, fps) * 10
    assert wanted * 0.85 - 1 <= count <= wanted + 1 + 1 / 8


def test_jitter_at_target_rate_loses_no_frame():
    """A source of exactly the target rate loses no frame to jitter."""
    captures_ns = [number * 100_000_000 + (-1) ** number * 6_000_000 for number in range(50)]

    assert taken(TargetRate(10), captures_ns) == captures_ns


def test_jump_of_source_restarts_the_intervals():
    """A jump in the instants of the source restarts the intervals.

    After a jump back the selector does not wait for an instant far ahead; after a gap it does not catch up.
    """
    selector = TargetRate(10).make_selector()
    jumps_ms = [10_000, 10_050, 5_000, 5_050, 5_100, 90_000, 90_001, 90_001]

    assert [selector.takes(at * MS) for at in jumps_ms] == [True, False, True, False, True, True, False, False]


@given(st.floats(0.1, 60.0), st.lists(st.integers(0, 300 * MS), min_size=1, max_size=300))
def test_the_rate_of_a_source_is_never_exceeded(rate, steps):
    """Any period has at most its length times the rate, plus one, frames."""
    selector = RateSelector(rate, MS)
    at_ns, taken = 0, []
    for step_ns in steps:
        at_ns += step_ns
        if selector.takes(at_ns):
            taken.append(at_ns)
    assert len(taken) <= (taken[-1] - taken[0] + MS) * rate / 1e9 + 1.001


@pytest.mark.parametrize(("rate", "count"), [(10, 100), (30, 250)])
def test_the_rate_of_a_source_is_reached(rate, count):
    """10 of 25 frames per second are taken, although their instants are not the due ones; above 25 per second, all."""
    selector = RateSelector(rate, MS)
    assert sum(selector.takes(40 * MS * number) for number in range(250)) == count


def test_a_frame_that_begins_the_intervals_is_taken():
    selector = RateSelector(1, MS)
    assert selector.takes(0)
    assert not selector.takes(10 * MS)
    assert selector.takes(20 * MS, begins=True)
    assert not selector.takes(900 * MS)
    assert selector.takes(1_020 * MS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EveryNth(0), ValueError, r"n: expected a whole number ≥ 1, got 0"),
        (lambda: EveryNth(1.5), TypeError, r"n: expected a whole number"),
        (lambda: Block(max_waiting=0), ValueError, r"max_waiting: expected a whole number ≥ 1"),
        (lambda: TargetRate(0), ValueError, r"per_s: expected a number of frames a second"),
        (lambda: TargetRate("5"), TypeError, r"per_s"),
        (lambda: EveryNth(2, then=EveryNth(2)), TypeError, r"then: expected a Block or a LatestOnly"),
        (
            lambda: si.streams.StreamSession(si.Stack(ScriptedBackend()), policy="latest"),
            TypeError,
            r"policy: expected a frame",
        ),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
