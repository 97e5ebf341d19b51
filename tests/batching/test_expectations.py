"""`Expectations`: predictions and learning of a policy, and the results for a policy that predicts nothing."""

import pytest

from streaminfer.batching.expectations import Expectations
from streaminfer.batching.pipeline import Pipeline
from streaminfer.batching.policy import Decision, Greedy
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, UNKNOWN
from streaminfer.request import Request

MS = 1_000_000


class Learns:
    """Policy that expects 1 ms per batch plus 1 ms per row, and records its observations."""

    full_size = 4

    def __init__(self, skips=False):
        self.observed, self.skips, self.skipped = [], skips, []

    def decide(self, queue, now_ns, free_workers):
        return Decision()

    def observe(self, size, duration_ns, now_ns, abandoned, bucket):
        self.observed.append((size, duration_ns, abandoned, bucket))

    def skip(self, execution, now_ns):
        self.skipped.append(len(execution.tickets))
        return self.skips

    def expected_ns(self, size, bucket=0):
        return (1 + size) * MS

    def predicted_finish_ns(self, queue, now_ns, running, bucket, early=0):
        return now_ns + (queue.queued + early + sum(rows for _, rows in running)) * MS


@pytest.fixture
def queue():
    return RequestQueue(16)


def expectations(queue, policy):
    made = Expectations(queue, Pipeline())
    made.set_policy(policy, keeps_queue=False)
    return made


def run_batch(queue, size, now_ns, buckets=(0,)):
    """Return a batch of ``size`` new requests that starts now; they have the ``buckets`` in turn."""
    for number in range(size):
        queue.admit(None, number, None, now_ns, 1000 * MS, 0, buckets[number % len(buckets)])
    return queue.take(list(queue), now_ns, "full")


def test_policy_that_only_decides_learns_nothing(queue):
    """A policy that only decides expects nothing and learns nothing."""
    asked = expectations(queue, Greedy(4))
    running = run_batch(queue, 2, 0)
    assert asked.predicted_finish_ns(5, 0, Request(1.0), False, (running,)) is None
    assert asked.outlook(5, ()) is None
    assert asked.expected_ns(running) == 0
    assert asked.upper_estimate_ns(4) is None
    asked.learn_from(running, 9 * MS)
    assert asked.retry_after_s(5 * MS, 3.0, ()) is None


def test_expectations_come_from_the_policy(queue):
    """The policy makes each prediction, from the queued requests and the running batches."""
    asked = expectations(queue, Learns())
    running = run_batch(queue, 2, 0)
    queue.admit(None, 9, None, 0, 1000 * MS, 0)
    assert asked.predicted_finish_ns(5, 0, Request(1.0), False, (running,)) == 5 + 3 * MS
    assert asked.expected_ns(running) == 3 * MS
    assert asked.upper_estimate_ns(4) == 3 * MS
    # before the first batch has ended, the age of the oldest running one counts as the duration of a batch
    assert asked.retry_after_s(4 * MS, 2.5, (running,)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("patience_ns", "deadline_ns", "has_slo", "ahead"),
    [(None, MS, False, 3), (9, MS, False, 1), (9, None, True, 1), (9, None, False, 3)],
)
def test_prediction_counts_what_is_served_first(queue, patience_ns, deadline_ns, has_slo, ahead):
    """A policy that serves requests with a deadline first says so; then such a request waits for those only."""
    policy = Learns()
    policy.patience_ns = patience_ns
    for deadline in (NEVER, NEVER, MS):
        queue.admit(None, 1.0, None, 5, deadline, 0)
    asked = expectations(queue, policy)
    request = Request(1.0, deadline_ns=deadline_ns)
    assert asked.predicted_finish_ns(5, 0, request, has_slo, ()) == 5 + ahead * MS


@pytest.mark.parametrize("skips", [True, False])
def test_batch_is_observed_unless_skipped(queue, skips):
    """The policy observes each batch that it has not skipped."""
    policy = Learns(skips)
    asked = expectations(queue, policy)
    asked.learn_from(run_batch(queue, 3, 1 * MS), 7 * MS)
    assert policy.skipped == [3]
    assert policy.observed == ([] if skips else [(3, 6 * MS, False, 0)])


def test_batch_with_unknown_start_teaches_nothing(queue):
    """The policy does not observe a batch whose start is unknown."""
    policy = Learns()
    running = run_batch(queue, 3, 1 * MS)
    running.predecessor_end_ns = UNKNOWN
    expectations(queue, policy).learn_from(running, 7 * MS)
    assert policy.observed == []


def test_bucket_of_batch_is_of_its_longest_request(queue):
    """The length bucket of a batch is the bucket of its longest request."""
    policy = Learns()
    asked = expectations(queue, policy)
    asked.plain = False
    running = run_batch(queue, 3, 0, buckets=(1, 3, 2))
    asked.learn_from(running, 7 * MS)
    assert asked.bucket_of(running.tickets) == 3
    assert policy.observed == [(3, 7 * MS, False, 3)]
