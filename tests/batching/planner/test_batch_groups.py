"""Batches that compare a size: when one is due, and whether there is time for it."""

import pytest

from streaminfer.batching.planner.batch_groups import batch_to_compare, in_deadline_order
from streaminfer.batching.planner.bucket_model import BucketModel
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
DEVICE = ServiceTime.affine(0.010, 0.001)  # 26 ms for 16


def model_of(*sizes):
    """Return a model that has observed batches of these sizes."""
    model = BucketModel(16, LearnedServiceTime(), workers=1, padded=None)
    for size in sizes:
        model.observe(size, round(DEVICE.at(size) * 1e9), 0, cancelled=False)
    return model


def group_of(model, *deadlines_ms, now_ns=0):
    queue = RequestQueue(100)
    for number, limit in enumerate(deadlines_ms):
        queue.admit(None, number, None, now_ns, NEVER if limit is None else now_ns + limit * MS, 0)
    return in_deadline_order(model, queue.first(queue.queued))


def compared(group, *others, size=None, now_ns=0):
    """Return the size of the batch that is sent instead of the first ``size`` requests, or of all; 0: none."""
    batch = group.tickets[:size]
    instead = group.model.size_instead_of(len(batch), len(group.tickets))
    return len(batch_to_compare(group, batch, instead, list(others), now_ns))


def test_the_first_batches_are_not_compared():
    assert compared(group_of(model_of(*[16] * 7), *[500] * 16)) == 0
    assert compared(group_of(model_of(*[16] * 8), *[500] * 16)) == 8


def test_partial_batch_is_compared_with_smaller_sizes():
    """A batch that is not full is compared with smaller sizes.

    If few callers wait for each batch, no batch is ever full.
    """
    assert compared(group_of(model_of(*[12] * 8), *[500] * 12)) == 8
    assert compared(group_of(model_of(*[12] * 8), *[500] * 3)) == 2
    assert compared(group_of(model_of(*[12] * 8), 500)) == 0


def test_only_full_batch_is_compared_with_known_size():
    """Only a full batch is compared with a size that is already known."""
    known = [2] * 4 + [4] * 4 + [8] * 4 + [16] * 128
    assert compared(group_of(model_of(*known), *[500] * 16)) == 8
    assert compared(group_of(model_of(*known), *[500] * 15)) == 0


@pytest.mark.parametrize(
    ("first_ms", "last_ms", "rows"),
    [(51, 500, 0), (60, 65, 0), (60, 90, 8)],
    ids=["itself is late", "what it leaves is late", "in time"],
)
def test_comparison_needs_time_for_two_full_batches(first_ms, last_ms, rows):
    assert compared(group_of(known_model(), *[first_ms] * 8, *[last_ms] * 8)) == rows


def known_model():
    """Return a model of which all smaller powers of two have run, and whose next batch may compare a size."""
    return model_of(2, 4, 8, *[16] * 5)


TIGHT_MS = [60] * 8 + [65] * 8


def test_a_size_that_never_ran_may_make_requests_late():
    """A size that never ran may replace a full batch and make requests late.

    Nothing else would show that the model loses from batching.
    """
    assert compared(group_of(model_of(*[16] * 16), *TIGHT_MS)) == 8
    assert compared(group_of(model_of(*[16] * 16), *TIGHT_MS[1:])) == 0
    assert compared(group_of(known_model(), *TIGHT_MS)) == 0


@pytest.mark.parametrize(("limit_ms", "rows"), [(60, 0), (120, 8)])
def test_other_groups_must_stay_on_time(limit_ms, rows):
    model = model_of(*[16] * 8)
    assert compared(group_of(model, *[500] * 16), group_of(model, limit_ms)) == rows


def test_requests_without_a_deadline_have_time():
    """Requests without a deadline leave time to compare a size, however long they have been queued."""
    model = model_of(*[16] * 8)
    group = group_of(model, *[None] * 64)
    other = group_of(model, *[None] * 64)
    assert compared(group, other, size=16, now_ns=60_000 * MS) == 8
