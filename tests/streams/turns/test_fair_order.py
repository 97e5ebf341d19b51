"""Turns of streams: shares by weight, and no gain by waiting or by a backlog."""

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams.turns._fair_order_cy import FairOrder, Turn

pytestmark = pytest.mark.uncompiled


def serve(order):
    """Give the next stream its turn."""
    turn = order.pop()
    order.charge(turn)
    return turn


class Owner:
    """Owner of a turn that can be weakly referenced."""


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=6), st.integers(1, 200))
def test_busy_streams_share_turns_by_weight(weights, turns):
    """At any moment, the turns of two busy streams, each divided by its weight, differ by at most a turn of each."""
    order, served = FairOrder(), {}
    for number, weight in enumerate(weights):
        order.push(Turn(number, weight, 0))
        served[number] = 0

    for _ in range(turns):
        turn = serve(order)
        served[turn.owner] += 1
        order.push(turn)
        shares = [served[number] / weight for number, weight in enumerate(weights)]
        for one, weight in zip(shares, weights, strict=True):
            for other, other_weight in zip(shares, weights, strict=True):
                assert abs(one - other) <= 1 / weight + 1 / other_weight + 1e-9


@pytest.mark.parametrize(
    ("weights", "rows"), [([1.0] * 12 + [0.5, 2.0, 4.0], 2), ([1.0] * 24 + [0.5, 2.0, 4.0], 4), ([1.0] * 24 + [8.0], 2)]
)
def test_a_stream_in_flight_keeps_its_share(weights, rows):
    """A stream with at most one frame per batch, whose next frame waits for the end of the batch, keeps its share."""
    order, served = FairOrder(), [0] * len(weights)
    for number, weight in enumerate(weights):
        order.push(Turn(number, weight, 0))

    for _ in range(2_000):
        batch = [serve(order) for _ in range(rows)]
        for turn in batch:
            served[turn.owner] += 1
            order.push(turn, True)
    share = sum(served) / sum(weights)
    assert served == pytest.approx([share * weight for weight in weights], rel=0.03)


def test_a_stream_that_joins_delays_no_light_one():
    """A light stream that had each turn that a heavy one left free shares the turns with a stream that joins."""
    order = FairOrder()
    heavy, light, joins = Turn("heavy", 8.0, 0), Turn("light", 1.0, 0), Turn("joins", 1.0, 0)
    for _ in range(1_000):
        for turn in (heavy, light):
            order.push(turn)
        assert {serve(order).owner, serve(order).owner} == {"heavy", "light"}

    served = []
    for _ in range(10):
        for turn in (light, joins):
            order.push(turn, True)
        served.append(serve(order).owner)
    assert served == ["joins", "light"] * 5


def test_unused_share_saves_at_most_eight_turns():
    """A stream that cannot use its share saves up at most eight turns.

    It is limited to one frame of each batch of two for a long time; then another stream arrives.
    """
    order = FairOrder()
    heavy, others = Turn("heavy", 100.0, 0), [Turn(number, 1.0, 0) for number in range(2)]
    for turn in (heavy, *others):
        order.push(turn)
    for _ in range(1_000):
        for turn in [serve(order) for _ in range(2)]:
            order.push(turn, True)

    light = Turn("light", 100.0, 0)
    order.push(light)
    served = []
    for _ in range(40):
        turn = serve(order)
        served.append(turn.owner)
        order.push(turn, True)
    assert served.index("light") <= 8


def test_stream_idle_after_its_turn_saves_nothing_up():
    """A stream that becomes idle while it is served saves nothing up.

    It has no frame when its turn ends, and its next frame arrives late; a rejection of that frame changes nothing.
    """
    order = FairOrder()
    busy, idle = Turn("busy", 1.0, 0), Turn("idle", 1.0, 0)
    order.push(idle)
    assert serve(order) is idle
    for _ in range(50):
        order.push(busy, True)
        assert serve(order) is busy

    order.push(busy, True)
    order.push(idle)
    assert order.pop() is idle  # its frame is rejected, and another frame waits after it
    order.push(idle, True)
    served = []
    for _ in range(6):
        turn = serve(order)
        served.append(turn.owner)
        order.push(turn, True)
    assert served == ["idle", "busy"] * 3


def test_idle_stream_is_next_and_has_saved_nothing_up():
    """A stream that was idle has the next turn and has saved nothing up."""
    order = FairOrder()
    greedy, idle = Turn("greedy", 1.0, 0), Turn("idle", 1.0, 0)
    for _ in range(50):
        order.push(greedy)
        assert serve(order) is greedy

    order.push(greedy)
    order.push(idle)
    served = []
    for _ in range(6):
        turn = serve(order)
        served.append(turn.owner)
        order.push(turn)
    assert served == ["idle", "greedy"] * 3


@given(st.integers(1, 9), st.integers(0, 20))
def test_idle_stream_waits_for_no_round_of_others(streams, turns):
    """A stream that was idle does not wait for a round of the others.

    This holds for any number of streams with a backlog, at any position in their round.
    """
    order = FairOrder()
    for number in range(streams):
        order.push(Turn(number, 1.0, 0))
    idle = Turn("idle", 1.0, 0)
    order.push(idle)
    for _ in range(streams + 1 + turns):
        turn = serve(order)
        if turn is not idle:
            order.push(turn)
    for _ in range(2 * streams):  # it has used its share by then
        order.push(serve(order))

    order.push(idle)
    assert serve(order) is idle


def test_turn_in_which_nothing_was_sent_is_free():
    """A turn in which nothing was sent costs the stream nothing."""
    order = FairOrder()
    old, greedy = Turn("its frames are too old", 1.0, 0), Turn("greedy", 1.0, 0)
    order.push(greedy)
    order.push(serve(order))
    order.push(old)
    for _ in range(5):
        assert order.pop() is old
        order.push(old)
    assert serve(order) is old
    order.push(old)
    assert [serve(order).owner for _ in range(2)] == ["greedy", "its frames are too old"]


def test_stream_with_too_old_frames_comes_first():
    """A stream whose frames were too old comes first; of several, the one that was denied most often."""
    order = FairOrder()
    turns = {name: Turn(name, 1.0, 0) for name in "abcd"}
    for turn in turns.values():
        order.push(turn)
        serve(order)
    busy = Turn("busy", 1.0, 0)
    for _ in range(10):
        order.push(busy)
        assert serve(order) is busy

    for times, turn in enumerate(turns.values()):
        turn.denied = times
        order.push(turn)
    assert [serve(order).owner for _ in range(4)] == ["d", "c", "b", "a"]


def test_too_old_frames_do_not_offset_past_turns():
    """Frames that were too old do not offset the turns that a stream has had.

    A stream that sends much and is denied often has its turn no earlier than without the denials.
    """
    order = FairOrder()
    greedy, other = Turn("greedy", 1.0, 0), Turn("other", 1.0, 0)
    for _ in range(10):
        order.push(greedy)
        assert serve(order) is greedy
    greedy.denied = 5

    order.push(greedy)
    order.push(other)
    assert [serve(order).owner for _ in range(2)] == ["other", "greedy"]


def test_urgent_streams_first_then_by_arrival():
    """More urgent streams go first, and those of equal priority in the order of arrival."""
    order = FairOrder()
    turns = [Turn(name, 1.0, priority) for name, priority in [("b", 1), ("a", 0), ("c", 1), ("z", -5)]]
    for turn in turns:
        order.push(turn)
        order.push(turn)  # it is queued once

    assert len(order.queued) == 4
    assert [order.pop().owner for _ in range(4)] == ["z", "a", "b", "c"]
    assert order.pop() is None
    assert not order.queued


def test_a_removed_stream_has_no_turn():
    order = FairOrder()
    one, other = Turn(1, 1.0, 0), Turn(2, 1.0, 0)
    order.push(one)
    order.push(other)
    order.remove(one)
    order.remove(one)

    assert order.pop() is other
    order.push(one)  # it can come back
    order.remove(one)
    order.push(one)
    assert order.pop() is one
    assert order.pop() is None


def test_removed_turns_are_freed():
    """Removed turns are freed, also if another stream waits all the time, for example while a service hangs."""
    order, owners = FairOrder(), weakref.WeakSet()
    order.push(Turn(Owner(), 1.0, 0))
    for _ in range(1000):
        turn = Turn(Owner(), 1.0, 0)
        owners.add(turn.owner)
        order.push(turn)
        order.remove(turn)

    assert len(owners) <= 20
    assert order.pop() is not None
    assert order.pop() is None
