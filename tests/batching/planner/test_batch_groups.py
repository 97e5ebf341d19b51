"""Pure functions of queued requests: which to pass over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.planner import kernels
from streaminfer.batching.planner.batch_groups import pass_over_late

pytestmark = pytest.mark.uncompiled

DURATIONS = np.array([0, 10, 12, 14, 16])


@pytest.mark.parametrize(
    ("deadlines", "found"),
    [
        ([20, 20, 20], (0, 3)),
        ([13, 20, 20, 20, 20], (1, 4)),
        ([11, 11, 11], (2, 1)),
        ([13, 15, 15, 15, 30], (2, 3)),
        ([16] * 9, (0, 4)),
    ],
    ids=["all", "one-late", "alone", "two", "more-than-a-batch"],
)
def test_the_largest_batch_behind_late_heads(deadlines, found):
    """The first requests are passed over until the batch that begins with the next one is on time."""
    assert pass_over_late(np.array(deadlines), DURATIONS, 0) == found


@given(st.lists(st.integers(110, 400), min_size=1, max_size=40), st.integers(1, 12))
def test_as_the_kernel_finds_it(deadlines, cap):
    """The planner's kernel, which falls back on the same rule, finds the same."""
    durations = np.array([0, *(100 + 3 * size for size in range(cap))])
    ordered = np.array(sorted(deadlines))

    assert pass_over_late(ordered, durations, 10) == tuple(
        map(int, kernels.drop_heads(10, ordered, ordered.size, durations))
    )
