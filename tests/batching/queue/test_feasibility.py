"""`DurationTable`: shares of the free workers."""

import numpy as np
import pytest

from streaminfer.batching.queue._feasibility_cy import DurationTable

pytestmark = pytest.mark.uncompiled


def table(duration_ns, cap=16):
    durations = np.array([0] + [duration_ns(size) for size in range(1, cap + 1)], np.int64)
    return DurationTable(durations, durations)


@pytest.mark.parametrize(
    ("queued", "workers", "share"),
    [(5, 0, 5), (5, 1, 5), (5, 2, 3), (5, 3, 2), (5, 4, 2), (5, 5, 1), (5, 8, 1), (1, 4, 1), (20, 2, 10), (20, 8, 3)],
)
def test_free_workers_have_equal_shares(queued, workers, share):
    """If each row takes as long as any other, as many workers as possible share the queue."""
    assert table(lambda size: 10 * size).share_of_worker(queued, workers) == share


@pytest.mark.parametrize(("queued", "workers"), [(32, 2), (40, 2), (16, 1), (17, 1)])
def test_full_batches_are_not_shared(queued, workers):
    """A batch stays full if the queue fills the batches of all free workers."""
    assert table(lambda size: 10 * size).share_of_worker(queued, workers) == 16


@pytest.mark.parametrize(
    "duration_ns",
    [lambda _: 50, lambda size: 1000 + 10 * size, lambda size: 40 + 2 * size],
    ids=["flat", "near", "cost"],
)
def test_one_batch_where_sharing_gains_little(duration_ns):
    """Rows stay together if a share is not at least 5 % shorter, or takes over 1.5 times as long per row."""
    assert table(duration_ns).share_of_worker(5, 2) == 5


def test_fewer_workers_share_where_small_batches_cost():
    """If shares of all free workers take too long per row, fewer workers share the queue."""
    by_row = table(lambda size: 20 + 10 * size)
    assert [by_row.share_of_worker(8, workers) for workers in (2, 3, 4, 8)] == [4, 3, 3, 3]
