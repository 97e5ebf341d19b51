"""Less urgent requests that fill a batch of urgent ones, compared with a search through all sizes."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.planner.class_filling import fill_with_less_urgent

pytestmark = pytest.mark.uncompiled

DURATIONS = np.array([0, 10, 11, 12, 13, 14, 15, 16, 17], np.int64)  # 9 + 1 per row, at most 8 rows
FAR = 10**6


def fill(
    others, *, now_ns=0, durations=DURATIONS, deadline=FAR, size=2, left=0, most=8, rates=(), means=None, steps=None
):
    model = SimpleNamespace(
        slow=durations,
        durations=durations if means is None else means,
        slow_steps=durations if steps is None else steps,
    )
    urgent = np.full(size + left, deadline)
    return fill_with_less_urgent(now_ns, model, urgent, size, np.array(others, np.int64), most, list(rates))


def test_the_batch_is_filled_to_the_cap():
    """If no deadline is close, less urgent requests fill the batch in their order."""
    assert fill([FAR] * 20) == [0, 1, 2, 3, 4, 5]


def test_all_are_taken_if_fewer_than_fit():
    """If fewer less urgent requests are queued than fit into the batch, it takes all of them."""
    assert fill([FAR] * 3) == [0, 1, 2]
    assert fill([]) == []


@pytest.mark.parametrize(("deadline", "count"), [(17, 6), (16, 5), (13, 2), (11, 0)])
def test_the_first_urgent_deadline_bounds_the_batch(deadline, count):
    """The batch is filled only as far as its urgent requests stay on time."""
    assert len(fill([FAR] * 20, deadline=deadline)) == count
    assert len(fill([FAR] * 20, now_ns=100, deadline=100 + deadline)) == count


@pytest.mark.parametrize(("deadline", "count"), [(30, 4), (22, 0), (21, 6), (18, 6), (14, 3)])
def test_mean_duration_decides_if_a_slow_batch_is_late(deadline, count):
    """If a slow batch of any size makes the urgent requests late, they must be on time in a batch of mean duration."""
    slow = DURATIONS * 2
    assert len(fill([FAR] * 20, deadline=deadline, durations=slow, means=DURATIONS)) == count


def test_next_worker_serves_the_next_urgent_request():
    """With three workers, the next urgent request waits for only a third of a batch, so the batch can be filled."""
    rates = [(0.0, 21)]  # a batch of one takes 10, and of eight 17
    assert fill([FAR] * 20, rates=rates) == []
    assert len(fill([FAR] * 20, rates=rates, steps=DURATIONS // 3)) == 6


def test_no_filling_while_urgent_requests_stay_queued():
    """No less urgent request is added while urgent ones stay queued, because each further row would delay them."""
    assert fill([FAR] * 20, left=1) == []


@pytest.mark.parametrize(("most", "count"), [(8, 6), (4, 2), (2, 0), (1, 0)])
def test_urgent_requests_elsewhere_bound_the_batch(most, count):
    """The batch is filled to at most `max_size`, which protects urgent requests that cannot share it.

    The same bound holds if no size leaves enough time for the next urgent request.
    """
    assert len(fill([FAR] * 20, most=most)) == count
    assert len(fill([FAR] * 20, most=most, rates=[(1.0, 1)])) == count


@pytest.mark.parametrize(
    ("limit", "count"),
    [(27, 6), (26, 5), (24, 3), (21, 0)],
    ids=["all-fit", "one-row-less", "three-rows-less", "none-fits"],
)
def test_time_is_left_for_the_next_urgent_request(limit, count):
    """An urgent request that arrives just after the batch was sent is on time in a batch of one after it."""
    assert len(fill([FAR] * 20, rates=[(0.0, limit)])) == count


def test_time_is_left_for_all_that_arrive_meanwhile():
    """Time is left for a next batch that holds all urgent requests that arrive during this one."""
    limit = 31  # 16 + 15: six urgent requests arrive during a batch of seven

    assert len(fill([FAR] * 20, rates=[(0.4, limit)])) == 5
    assert len(fill([FAR] * 20, rates=[(0.0, limit)])) == 6


def test_the_next_batch_is_at_most_the_cap():
    """The next batch is expected to have at most 8 rows, however many requests arrive: 16 + 17 fit within 33."""
    assert len(fill([FAR] * 20, rates=[(100.0, 33)])) == 5


def test_the_class_with_the_least_time_decides():
    """Of several classes of expected requests, the class with the shortest timeout bounds the batch."""
    assert len(fill([FAR] * 20, rates=[(0.0, FAR), (0.0, 25)])) == 4


def test_a_limit_that_no_size_meets_is_ignored():
    """If no size leaves enough time, the batch is filled, because a smaller one would only cost throughput."""
    assert len(fill([FAR] * 20, rates=[(0.0, 5)])) == 6


def test_requests_that_would_be_late_are_left_out():
    """A less urgent request that would be late in the batch is left out, and those behind it move up."""
    assert fill([14, FAR, FAR, 14, FAR], size=4) == [1, 2, 4]


def test_the_batch_shrinks_to_keep_more_on_time():
    """If many deadlines are close, the batch is smaller, so that more of these requests are on time."""
    assert fill([13] * 5) == [0, 1]
    assert fill([14] * 2 + [13] * 5) == [0, 1]


def on_time(others, finish_ns):
    return [at for at, deadline in enumerate(others) if deadline >= finish_ns]


@given(
    steps=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    size=st.integers(1, 4),
    deadline=st.integers(1, 80),
    others=st.lists(st.integers(0, 80), max_size=15),
    now_ns=st.integers(0, 10),
)
def test_the_largest_feasible_size_is_found(steps, size, deadline, others, now_ns):
    """The batch has the largest size at which all its requests are on time, or only the urgent requests."""
    durations = np.concatenate([[0], 10 + np.cumsum(steps)])
    cap = len(durations) - 1
    size = min(size, cap)
    feasible = [
        total
        for total in range(size, cap + 1)
        if total == size
        or (now_ns + durations[total] <= deadline and len(on_time(others, now_ns + durations[total])) >= total - size)
    ]

    chosen = fill(others, now_ns=now_ns, durations=durations, deadline=deadline, size=size, most=cap)

    total = max(feasible)
    assert chosen == on_time(others, now_ns + durations[total])[: total - size]
