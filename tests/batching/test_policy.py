"""Decisions of the `Greedy` policy, from the queued requests, the time and the free workers."""

import pytest

from streaminfer.batching import Greedy
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


def queue_of(*enqueued_ns, priorities=None, places=100):
    queue = RequestQueue(places)
    for number, now_ns in enumerate(enqueued_ns):
        queue.admit(None, number, None, now_ns, NEVER, priorities[number] if priorities else 0)
    return queue


def numbers(decision):
    return [ticket.inputs for ticket in decision.batch]


def test_greedy_releases_all_queued_requests():
    decision = Greedy(4).decide(queue_of(0, 1, 2), 5, 1)
    assert numbers(decision) == [0, 1, 2]
    assert (decision.reason, decision.reject, decision.recheck_ns) == ("idle_worker", (), None)


def test_greedy_sends_the_most_urgent_first():
    """The greedy policy sends up to `max_batch_size` requests, the most urgent first."""
    decision = Greedy(3).decide(queue_of(0, 1, 2, 3, priorities=[5, 0, 5, -1]), 5, 1)
    assert numbers(decision) == [3, 1, 0]
    assert decision.reason == "full"


def test_queue_delay_counts_from_the_oldest_request():
    decision = Greedy(4, 5 * MS).decide(queue_of(10 * MS, 12 * MS), 13 * MS, 1)
    assert numbers(decision) == []
    assert decision.recheck_ns == 15 * MS


def test_delay_counts_from_oldest_of_any_priority():
    """The queue delay counts from the oldest queued request, whatever its priority."""
    decision = Greedy(4, 5 * MS).decide(queue_of(10 * MS, 12 * MS, priorities=[3, 0]), 13 * MS, 1)
    assert decision.recheck_ns == 15 * MS


@pytest.mark.parametrize("now_ns", [15 * MS, 16 * MS])
def test_a_batch_is_sent_after_the_delay(now_ns):
    decision = Greedy(4, 5 * MS).decide(queue_of(10 * MS, 12 * MS), now_ns, 1)
    assert numbers(decision) == [0, 1]
    assert decision.reason == "max_queue_delay"


def test_a_full_queue_is_not_held_back():
    """A full queue is not held back, because the next request would be rejected while a worker is free."""
    decision = Greedy(4, 5 * MS).decide(queue_of(0, 0, places=2), 0, 1)
    assert numbers(decision) == [0, 1]
    assert decision.reason == "full"


def test_a_full_batch_is_not_held_back():
    decision = Greedy(2, 5 * MS).decide(queue_of(0, 0, 0), 0, 1)
    assert numbers(decision) == [0, 1]
    assert decision.reason == "full"


@pytest.mark.parametrize("policy", [Greedy(2), Greedy(2, MS)])
def test_decide_does_not_change_the_queue(policy):
    queue = queue_of(0, 0, 0)
    policy.decide(queue, 10 * MS, 1)
    assert len(queue) == 3
    assert all(ticket.state == "queued" for ticket in queue)
