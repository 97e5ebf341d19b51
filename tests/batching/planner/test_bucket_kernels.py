"""The kernels that choose among length buckets: they count what a real schedule can reach, in every compiled form."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_kernels import load_plain

from streaminfer import _compiled_kernels
from streaminfer.batching.planner import bucket_kernels

VARIANTS = [_compiled_kernels.load_variant(name) for name in _compiled_kernels.variants()]
CHOOSE_BUCKET = [bucket_kernels.choose_bucket, *(variant.checked("choose_bucket") for variant in VARIANTS)]


@pytest.fixture(scope="module")
def plain_kernels():
    return load_plain(bucket_kernels)


def in_order(deadlines, caps, durations, steps, buckets):
    """Return how many requests are on time if buckets are served in this order and each batch drops late heads."""
    left = [list(bucket) for bucket in deadlines]
    time, on_time = 0, 0
    for bucket in buckets:
        while left[bucket]:
            size = min(len(left[bucket]), caps[bucket])
            if time + durations[bucket][size] <= left[bucket][0]:
                break
            left[bucket].pop(0)
        if left[bucket]:
            time += steps[bucket][size]
            on_time += size
            del left[bucket][:size]
    return on_time


def test_bucket_that_saves_most_requests_goes_first(plain_kernels):
    """The bucket that lets the most requests be on time is served first."""
    # bucket 0: short rows, cheap; bucket 1: long rows, costly
    durations = np.array([[0, 4, 5, 6, 7], [0, 20, 30, 1, 1]], np.int64)
    caps = np.array([4, 2], np.int64)
    for module in (bucket_kernels, plain_kernels):
        # all are on time only if the short ones are served first
        both = (np.array([10, 10, 40, 40], np.int64), np.array([0, 2, 4], np.int64), caps, durations, durations)
        assert module.choose_bucket(0, *both) == 0
        # the long ones are served first, because the short ones have time
        later = (np.array([40, 40, 30, 31], np.int64), np.array([0, 2, 4], np.int64), caps, durations, durations)
        assert module.choose_bucket(0, *later) == 1
        # not all can be on time, and more of them are short
        one = (np.array([8, 8, 8, 31, 31], np.int64), np.array([0, 3, 5], np.int64), caps, durations, durations)
        assert module.choose_bucket(0, *one) == 0
        assert module.roll_buckets(0, *one, 0, False) == (4, 26)  # one of the long ones is still on time alone
        assert module.roll_buckets(0, *one, 1, False) == (2, 30)


@settings(max_examples=100)
@given(
    groups=st.lists(st.lists(st.integers(5, 80), max_size=6).map(sorted), min_size=2, max_size=3).filter(any),
    costs=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), min_size=3, max_size=3),
    first=st.integers(0, 2),
)
def test_roll_buckets_counts_what_a_schedule_counts(groups, costs, first, plain_kernels):
    """`roll_buckets` counts no more than the best schedule, and all forms of the kernel agree."""
    cap = 3
    durations = np.array([[0, *(a + b * k for k in range(cap))] for a, b in costs[: len(groups)]], np.int64)
    caps = np.full(len(groups), cap, np.int64)
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    flat = np.array([deadline for group in groups for deadline in group], np.int64)
    first %= len(groups)
    for by_rate in (False, True):
        compiled = bucket_kernels.roll_buckets(0, flat, offsets, caps, durations, durations, first, by_rate)
        assert compiled == plain_kernels.roll_buckets(0, flat, offsets, caps, durations, durations, first, by_rate)
        orders = (
            [order for length in range(len(flat) + 1) for order in itertools.product(range(len(groups)), repeat=length)]
            if len(flat) <= 5
            else []
        )
        if orders:  # what the kernel plays is one of these schedules
            assert compiled[0] <= max(in_order(groups, caps, durations, durations, order) for order in orders)
    arguments = (0, flat, offsets, caps, durations, durations)
    chosen = plain_kernels.choose_bucket(*arguments)
    assert [choose_bucket(*arguments) for choose_bucket in CHOOSE_BUCKET] == [chosen] * len(CHOOSE_BUCKET)
