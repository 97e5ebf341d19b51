"""Turns of streams: shares by weight, and nothing to be gained by waiting or by a backlog."""

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams._fair_order_cy import FairOrder, Turn

pytestmark = pytest.mark.uncompiled


class Owner:
    """A stream of which is known whether anything holds it."""


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=6), st.integers(1, 200))
def test_streams_that_always_wait_share_by_weight(weights, turns):
    """At any moment two of them differ by no more than a turn of each, for their weight."""
    order, served = FairOrder(), {}
    for number, weight in enumerate(weights):
        order.push(Turn(number, weight, 0))
        served[number] = 0

    for _ in range(turns):
        turn = order.pop()
        served[turn.owner] += 1
        order.push(turn)
        shares = [served[number] / weight for number, weight in enumerate(weights)]
        for one, weight in zip(shares, weights, strict=True):
            for other, other_weight in zip(shares, weights, strict=True):
                assert abs(one - other) <= 1 / weight + 1 / other_weight + 1e-9


def test_a_stream_that_was_idle_is_next_and_has_saved_nothing_up():
    order = FairOrder()
    greedy, idle = Turn("greedy", 1.0, 0), Turn("idle", 1.0, 0)
    for _ in range(50):
        order.push(greedy)
        assert order.pop() is greedy

    order.push(greedy)
    order.push(idle)
    served = []
    for _ in range(6):
        turn = order.pop()
        served.append(turn.owner)
        order.push(turn)
    assert served == ["idle", "greedy"] * 3


def test_a_turn_that_came_to_nothing_is_not_counted():
    """A stream that was denied turns is served before those that had theirs, the one that was denied the most first."""
    order = FairOrder()
    turns = {name: Turn(name, 1.0, 0) for name in "abcd"}
    for turn in turns.values():
        order.push(turn)
    for times, name in enumerate("abcd"):
        assert order.pop() is turns[name]
        for _ in range(times):
            order.deny(turns[name])
    assert [turn.denied for turn in turns.values()] == [0, 1, 2, 3]

    busy = Turn("busy", 1.0, 0)
    for _ in range(10):
        order.push(busy)
        assert order.pop() is busy
    for turn in turns.values():
        order.push(turn)
    assert [order.pop().owner for _ in range(4)] == ["d", "c", "b", "a"]


def test_denied_turns_are_no_credit_against_what_a_stream_has_had():
    """One that sends much and is denied often has its turn when it would have had it anyway."""
    order = FairOrder()
    greedy, other = Turn("greedy", 1.0, 0), Turn("other", 1.0, 0)
    for _ in range(10):
        order.push(greedy)
        order.pop()
    order.push(greedy)
    assert order.pop() is greedy
    for _ in range(5):
        order.deny(greedy)

    order.push(other)
    order.push(greedy)
    assert [order.pop().owner for _ in range(2)] == ["other", "greedy"]


def test_a_stream_that_is_put_back_keeps_its_place():
    order = FairOrder()
    turns = [Turn(number, 1.0, 0) for number in range(3)]
    for turn in turns:
        order.push(turn)
    popped = [order.pop(), order.pop()]
    order.push_back(popped[1])
    order.push_back(popped[0])

    assert [order.pop() for _ in range(3)] == turns
    order.push(turns[0])
    order.push(turns[2])
    assert order.pop() is turns[0]


def test_more_urgent_streams_go_first_and_equals_in_order_of_arrival():
    order = FairOrder()
    turns = [Turn(name, 1.0, priority) for name, priority in [("b", 1), ("a", 0), ("c", 1), ("z", -5)]]
    for turn in turns:
        order.push(turn)
        order.push(turn)  # it is queued once

    assert order.count == 4
    assert [order.pop().owner for _ in range(4)] == ["z", "a", "b", "c"]
    assert order.pop() is None
    assert order.count == 0


def test_a_removed_stream_has_no_turn():
    order = FairOrder()
    one, other = Turn(1, 1.0, 0), Turn(2, 1.0, 0)
    order.push(one)
    order.push(other)
    order.remove(one)
    order.remove(one)

    assert order.pop() is other
    order.push(one)  # it may come back
    order.remove(one)
    order.push(one)
    assert order.pop() is one
    assert order.pop() is None


def test_a_turn_that_was_removed_is_not_kept():
    """While a service hangs, streams come and go, and one that waits keeps the order from running empty."""
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
