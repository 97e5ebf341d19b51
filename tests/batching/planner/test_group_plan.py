"""Choice of the group that is served first, and of the batch of one group, tested without the policy."""

import pytest

from streaminfer.batching.planner.batch_groups import in_deadline_order
from streaminfer.batching.planner.bucket_model import BucketModel
from streaminfer.batching.planner.group_plan import choose_group, plan_batch
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime

MS = 1_000_000
SHORT = ServiceTime.affine(0.003, 0.001)
LONG = ServiceTime.table({1: 0.020, 2: 0.030})
DEVICE = ServiceTime.affine(0.010, 0.001)  # 11 ms alone, 14 ms for four


def queue_of(deadlines_ms, priorities=()):
    queue = RequestQueue(100)
    for number, deadline in enumerate(deadlines_ms):
        deadline_ns = NEVER if deadline is None else round(deadline * MS)
        queue.admit(None, number, None, 0, deadline_ns, priorities[number] if priorities else 0)
    return queue


def group_of(service_time, queue, *, cap=4):
    return in_deadline_order(BucketModel(cap, service_time, workers=1, padded=None), queue.first(queue.queued))


def plan(queue, service_time=DEVICE):
    batch, reason = plan_batch(queue, group_of(service_time, queue), 0, [])
    return [ticket.inputs for ticket in batch], reason


def test_a_larger_batch_is_tried_again_under_overload():
    """A larger size that seems too slow and has not run for long gets the requests with most time left, once."""
    slow = ServiceTime.table({2: 0.009, 4: 0.010, 8: 0.080}).seconds
    model = BucketModel(8, LearnedServiceTime(), workers=1, padded=None)
    for size in [2, 4, 8] * 10 + [2, 4] * 70:
        model.observe(size, round(slow(size) * 1e9), 0, cancelled=False)
    queue = queue_of([15.0 + number / 10 for number in range(12)])
    group = in_deadline_order(model, queue.first(12))

    batch, reason = plan_batch(queue, group, 0, [])
    assert ([ticket.inputs for ticket in batch], reason) == ([4, 5, 6, 7, 8, 9, 10, 11], "exploration")

    batch, reason = plan_batch(queue, group, 0, [])
    assert (len(batch), reason) == (4, "planned")


@pytest.mark.parametrize(
    ("setup_ms", "explored"),
    [(1, {0: 4, 16: 2}), (2, {0: 4}), (10, {})],
    ids=["both as good", "larger as good", "worse"],
)
def test_a_smaller_size_runs_once_under_overload(setup_ms, explored):
    """Under overload, a size that never ran replaces one full batch if twice that size was about as good per row.

    Nothing else would show how good the smaller size is.
    """
    model = BucketModel(16, LearnedServiceTime(), workers=1, padded=None)
    for size in [16] * 24 + [8] * 4 + [16] * 4:
        model.observe(size, (setup_ms + size) * MS, 0, cancelled=False)
    queue = queue_of([1.3 * (setup_ms + 16)] * 48)

    batches = []
    for _ in range(100):
        batch, reason = plan_batch(queue, in_deadline_order(model, queue.first(48)), 0, [])
        model.observe(len(batch), (setup_ms + len(batch)) * MS, 0, cancelled=False)
        batches.append((len(batch), reason))

    assert {number: size for number, (size, reason) in enumerate(batches) if reason == "exploration"} == explored
    assert all(batch == (16, "planned") for number, batch in enumerate(batches) if number not in explored)


def test_no_smaller_size_is_tried_beside_other_groups():
    """A smaller size is not tried if it would make a request of another group late."""
    model = BucketModel(16, LearnedServiceTime(), workers=1, padded=None)
    for size in [16] * 24 + [8] * 4 + [16] * 4:
        model.observe(size, (2 + size) * MS, 0, cancelled=False)
    queue = queue_of([24.0] * 48)
    group = in_deadline_order(model, queue.first(48))

    batch, reason = plan_batch(queue, group, 0, [group])

    assert (len(batch), reason) == (16, "planned")


@pytest.mark.parametrize("limit_ms", [None, 1000])
def test_a_smaller_batch_of_classes_is_compared(limit_ms):
    """A smaller batch that compares a size has the most urgent requests of several classes."""
    model = BucketModel(8, LearnedServiceTime(), workers=1, padded=None)
    for _ in range(8):
        model.observe(8, 18 * MS, 0, cancelled=False)
    queue = queue_of([limit_ms] * 12, [1, 0] * 6)
    group = in_deadline_order(model, queue.first(12))

    batch, reason = plan_batch(queue, group, 0, [])

    assert ([ticket.inputs for ticket in batch], reason) == ([1, 3, 5, 7], "exploration")


def test_the_only_group_is_served():
    """If there is a single group, it is chosen, and no other group is beside it."""
    only = group_of(DEVICE, queue_of([50]))

    assert choose_group([only], 0, by_class=False) == (only, [])


def test_the_group_that_saves_most_goes_first():
    """Short requests are served first if both groups are on time only then, and long ones if short ones have time."""
    hurried = [group_of(LONG, queue_of([40, 40]), cap=2), group_of(SHORT, queue_of([10, 10]))]
    patient = [group_of(LONG, queue_of([31, 32]), cap=2), group_of(SHORT, queue_of([40, 40]))]

    assert choose_group(hurried, 0, by_class=False) == (hurried[1], [hurried[0]])
    assert choose_group(patient, 0, by_class=False) == (patient[0], [patient[1]])


def shown(groups):
    return [[ticket.inputs for ticket in group.tickets] for group in groups]


def test_the_most_urgent_class_chooses_the_group():
    """The most urgent class chooses the group, even if more requests of other classes could be on time otherwise."""
    groups = [group_of(LONG, queue_of([40], [0]), cap=2), group_of(SHORT, queue_of([5, 5, 5], [1, 1, 1]))]

    assert choose_group(groups, 0, by_class=False)[0] is groups[1]
    assert choose_group(groups, 0, by_class=True) == (groups[0], [])


def test_a_group_with_a_deadline_goes_first():
    groups = [group_of(DEVICE, queue_of([None, None, None])), group_of(DEVICE, queue_of([5000], [1]))]

    assert choose_group(groups, 0, by_class=True)[0] is groups[1]


def test_urgent_requests_of_others_are_not_delayed():
    """The group is chosen so that urgent requests of other groups are not delayed.

    If all urgent requests are on time, the group with the earliest of their deadlines is served first. Less urgent
    requests do not count.
    """
    queues = [queue_of([60, 10], [0, 1]), queue_of([30, 90], [0, 1]), queue_of([8], [1])]
    groups = [group_of(DEVICE, queue) for queue in queues]

    group, beside = choose_group(groups, 0, by_class=True)

    assert (group is groups[1], shown(beside)) == (True, [[0]])


def test_group_saving_most_urgent_requests_goes_first():
    """If not all urgent requests can be on time, the group that saves the most of them is served first."""
    queues = [queue_of([12], [0]), queue_of([22, 22, 22, 90], [0, 0, 0, 1])]
    groups = [group_of(DEVICE, queue) for queue in queues]

    assert choose_group(groups, 0, by_class=True)[0] is groups[1]


def rows_beside(deadline_ms, *, arrivals=0):
    """Return the rows of a batch with an urgent request, beside a group with one due in ``deadline_ms``."""
    queue = RequestQueue(100)
    for _ in range(arrivals):
        queue.admit(None, "past", None, 0, 1000 * MS, 0)
    queue.take(queue.first(arrivals), 0, "planned")
    now_ns = 100 * MS
    for priority in (0, 1, 1, 1):
        queue.admit(None, priority, None, now_ns, now_ns + 1000 * MS, priority)
    group = group_of(DEVICE, queue)
    other = RequestQueue(10)
    other.admit(None, 0, None, now_ns, now_ns + round(deadline_ms * MS), 0)
    batch, _ = plan_batch(queue, group, now_ns, [group_of(DEVICE, other)])
    return len(batch)


def test_less_urgent_requests_do_not_delay_others():
    """Less urgent requests do not delay the urgent requests of other groups.

    They fill a batch only as far as the urgent request of another group, which takes 11 ms, is on time after it.
    """
    assert [rows_beside(limit) for limit in (26, 24.1, 23.1, 22.1)] == [4, 3, 2, 1]


def test_late_requests_of_other_groups_are_ignored():
    """If an urgent request of another group is late after any batch, less urgent requests fill all rows."""
    assert rows_beside(15) == 4


def test_time_is_left_for_arriving_urgent_requests():
    """Time is left for urgent requests that will join other groups.

    The more requests arrive, the more will join the other groups, so the batch has fewer rows.
    """
    assert [rows_beside(26, arrivals=arrivals) for arrivals in (0, 5, 10, 20)] == [4, 3, 2, 1]


def test_heads_are_passed_over():
    """A request that is on time only alone is passed over if it would make three others late."""
    assert plan(queue_of([11.5, 23.5, 23.5, 23.5])) == ([1, 2, 3], "planned")


def test_the_largest_batch_goes_beside_other_groups():
    """Beside other groups, a group sends the largest batch that is on time.

    Alone, it saves its first request with a smaller batch and catches up later; other groups need that time.
    """
    queue = queue_of([13, 40, 40, 40, 40])
    group = group_of(DEVICE, queue)

    alone, _ = plan_batch(queue, group, 0, [])
    beside, reason = plan_batch(queue, group, 0, [group])

    assert [ticket.inputs for ticket in alone] == [0, 1, 2]
    assert ([ticket.inputs for ticket in beside], reason) == ([1, 2, 3, 4], "planned")


def test_the_most_urgent_class_is_planned_first():
    """Less urgent requests only fill the batch of the urgent ones, although their deadlines are earlier."""
    assert plan(queue_of([30, 30, 30, 30, 40, 40], [1, 1, 1, 1, 0, 0])) == ([4, 5, 0, 1], "planned")


def test_requests_without_deadline_come_last():
    """A request with a deadline precedes requests without one, whatever the priorities and however late it is due."""
    assert plan(queue_of([None, None, 3000], [0, 0, 1])) == ([2, 0, 1], "planned")


def test_a_size_that_was_hardly_measured_is_explored():
    """A size with one measured batch is explored only if that duration would make the first request late."""
    model = BucketModel(4, LearnedServiceTime(), workers=1, padded=None)
    for size, duration_ms in ((1, 5), (1, 5), (4, 20)):
        model.observe(size, duration_ms * MS, duration_ms * MS, cancelled=False)
    queue, patient = queue_of([6] * 4), queue_of([50] * 4)

    assert plan_batch(queue, in_deadline_order(model, queue.first(4)), 0, []) == (
        queue.first(4),
        "exploration",
    )
    assert plan_batch(patient, in_deadline_order(model, patient.first(4)), 0, [])[1] == "planned"


def test_exploration_uses_requests_with_most_time_left():
    """An exploration batch has the requests with most time left, because the first ones would be late in it.

    A batch whose requests have all passed their deadlines measures nothing.
    """
    model = BucketModel(16, LearnedServiceTime(), workers=1, padded=None)
    for size, duration_ms in ((1, 5), (1, 5), (16, 20)):
        model.observe(size, duration_ms * MS, duration_ms * MS, cancelled=False)
    queue = queue_of([6, 6, 6, 6, 30, 30, 30, 30])

    batch, reason = plan_batch(queue, in_deadline_order(model, queue.first(8)), 0, [])

    assert ([ticket.inputs for ticket in batch], reason) == ([4, 5, 6, 7], "exploration")


def overloaded(gap_ns, longer_ns=0):
    """Return a queue of eight requests that arrived ``gap_ns`` apart; the first is due 16 ms after the last arrival.

    The timeout of each request is ``longer_ns`` longer than that of the one before it.
    """
    queue = RequestQueue(100)
    for number in range(8):
        deadline_ns = 7 * gap_ns + 16 * MS + number * (gap_ns + longer_ns)
        queue.admit(None, number, None, number * gap_ns, deadline_ns, 0)
    return queue


def planned_at_the_end(queue, model, gap_ns):
    batch, _ = plan_batch(queue, in_deadline_order(model, queue.first(8)), 7 * gap_ns, [])
    return [ticket.inputs for ticket in batch]


def test_overload_favors_requests_with_more_time_left():
    """Under overload, the planner passes over requests with little time left for others that are more likely on time.

    It passes over no more than are lost in any case: the model is as busy, and a slow batch makes fewer late.
    """
    noisy = BucketModel(4, LearnedServiceTime(prior=DEVICE), workers=1, padded=None)
    for number in range(80):
        noisy.observe(4, (12, 16)[number % 2] * MS, number * 20 * MS, cancelled=False)
    exact = BucketModel(4, DEVICE, workers=1, padded=None)
    twice, light = MS, 20 * MS  # a batch of four takes 14 ms: 14 requests arrive meanwhile, or none

    assert planned_at_the_end(overloaded(twice), exact, twice) == [0, 1, 2, 3]
    assert planned_at_the_end(overloaded(twice), noisy, twice) == [1, 2, 3, 4]  # a slow batch takes over 16 ms
    assert planned_at_the_end(overloaded(light), noisy, light)[0] == 0
    assert planned_at_the_end(overloaded(twice, 2 * MS), noisy, twice) == [1, 2, 3, 4]  # also if timeouts differ
    assert planned_at_the_end(overloaded(light, 2 * MS), noisy, light)[0] == 0
