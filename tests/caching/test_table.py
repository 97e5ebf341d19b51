"""The wheel and the queues by themselves, each against a plain model, and against their plain twins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.caching._eviction_cy import FIRST, EvictionOrder
from streaminfer.caching._wheel_cy import NEVER, ExpiryWheel

pytestmark = pytest.mark.uncompiled

INSTANTS = st.one_of(st.integers(0, 300), st.integers(0, 10**12), st.just(2**62))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 20), INSTANTS),
        st.tuples(st.just("remove"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pop"), st.integers(0, 4), INSTANTS),
    ),
    max_size=60,
)


@pytest.mark.parametrize("which", ["as imported", "plain"])
@given(steps=STEPS)
def test_the_wheel_gives_out_exactly_what_is_due(plain, which, steps):
    wheel = (plain("caching._wheel_cy").ExpiryWheel if which == "plain" else ExpiryWheel)(21)
    model = {}
    now = 0
    for step, number, at in steps:
        if step == "insert" and number not in model:
            wheel.insert(number, at)
            model[number] = at
        elif step == "remove":
            wheel.remove(number)
            model.pop(number, None)
        elif step == "pop":
            now = max(now, at)
            for _ in range(number):
                slot = wheel.pop_due(now)
                if slot < 0:
                    assert all(at > now for at in model.values())
                    break
                assert model.pop(slot) == wheel.popped_ns <= now
        assert wheel.due_ns <= min(model.values(), default=NEVER)
        assert [wheel.at(slot) for slot in range(21)] == [model.get(slot, NEVER) for slot in range(21)]
    left = set()
    while (slot := wheel.pop_due(2**62)) >= 0:
        left.add(slot)
    assert left == set(model)


def test_the_wheel_keeps_what_it_has_when_it_grows():
    wheel = ExpiryWheel(2)
    wheel.insert(1, 5)
    wheel.grow(10)
    wheel.insert(9, 4)
    wheel.grow(3)
    assert {wheel.pop_due(5), wheel.pop_due(5)} == {1, 9}
    assert wheel.pop_due(10**18) == -1
    assert wheel.due_ns == NEVER


def mixed(slot):
    return (slot * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 1


def s3fifo(maxsize):
    return EvictionOrder(FIRST + maxsize + 1, True, maxsize, 2**63 - 1)


def test_s3fifo_a_newcomer_that_is_not_asked_for_goes_before_what_was():
    order = s3fifo(10)
    for slot in range(FIRST, FIRST + 11):
        order.add(slot, 1, mixed(slot))
    order.touch(FIRST)
    assert order.victim(False) == FIRST + 9, "the others filled main"
    assert order.queue_of(FIRST) == 0, "asked for: it moved on to main"


def test_s3fifo_who_comes_back_goes_to_main_at_once():
    order = s3fifo(10)
    for slot in range(FIRST, FIRST + 11):
        order.add(slot, 1, mixed(slot))
    victim = order.victim(False)
    order.evicted(victim, mixed(victim))
    order.remove(victim)
    order.add(victim, 1, mixed(victim))
    assert order.queue_of(victim) == 0
    other = FIRST + 10
    order.remove(other)  # taken out by hand: no ghost
    order.add(other, 1, mixed(other))
    assert order.queue_of(other) == 1


def test_negative_entries_have_a_sixteenth_of_the_room():
    order = EvictionOrder(64, False, 32, 2**63 - 1)
    order.add(FIRST, 1, 0)
    for slot in range(FIRST + 1, FIRST + 3):
        order.add_negative(slot, 1)
        order.add(slot + 10, 1, 0)
    assert order.victim(False) == FIRST, "within their share they stay"
    order.add_negative(FIRST + 3, 1)
    assert order.victim(False) == FIRST + 1
