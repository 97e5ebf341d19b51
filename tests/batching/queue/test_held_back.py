"""Requests of one stream in the queue: the next one is queued when the one before it has ended."""

import pytest

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER

pytestmark = pytest.mark.uncompiled


class Future:
    def __init__(self):
        self.value = None

    def done(self):
        return self.value is not None

    def set_result(self, value):
        self.value = value

    set_exception = set_result


def admit(queue, name, stream_id=None, deadline_ns=NEVER, priority=0):
    return queue.admit(name, name, Future(), 1, deadline_ns, priority, 0, stream_id)


def queued(queue):
    return [ticket.request for ticket in queue]


def test_one_request_of_each_stream_is_queued():
    """The queue holds later requests of a stream back until the earlier one has ended; policies do not see them."""
    queue = RequestQueue(5)
    first, _, third = (admit(queue, name, "a") for name in ("a1", "a2", "a3"))
    admit(queue, "b1", "b")
    admit(queue, "free")
    assert queued(queue) == ["a1", "b1", "free"]
    assert (queue.queued, queue.held_back, queue.full) == (3, 2, True)
    assert third.state == "queued"

    execution = queue.take([first], 2, "idle_worker")
    assert queued(queue) == ["b1", "free"]
    queue.deliver(execution, ["row"], 3, 4)

    assert queued(queue) == ["b1", "free", "a2"]
    assert queue.held_back == 1


@pytest.mark.parametrize("at", [0, 1, 2])
def test_cancelled_request_keeps_the_order_of_the_rest(at):
    """If any request of a stream is cancelled, the others keep their order."""
    queue = RequestQueue(9)
    tickets = [admit(queue, number, "a") for number in range(3)]

    assert queue.end(tickets[at])
    assert not queue.end(tickets[at])

    left = [number for number in range(3) if number != at]
    admit(queue, 3, "a")
    for number in [*left, 3]:
        assert queued(queue) == [number]
        queue.end(next(iter(queue)))
    assert (queue.queued, queue.held_back) == (0, 0)
    assert queue.held() == []


def test_deadlines_hold_for_those_held_back():
    """A request that is held back ends at its deadline."""
    queue = RequestQueue(9)
    admit(queue, "a1", "a")
    held = admit(queue, "a2", "a", deadline_ns=50)
    assert queue.held() == [held]
    assert queue.next_deadline_ns == 50

    ((future, execution, _),) = queue.expire(50)

    assert execution is None
    assert not future.done()
    assert (queue.queued, queue.held_back) == (1, 0)


def test_all_expire_at_once():
    """If all requests of a stream reach their deadlines together, the queue is empty."""
    queue = RequestQueue(9)
    for number in range(4):
        admit(queue, number, "a", deadline_ns=50)

    assert len(queue.expire(60)) == 4
    assert (queue.queued, queue.held_back, queue.next_deadline_ns) == (0, 0, NEVER)


def test_held_back_requests_are_shed_first():
    """Of the least urgent requests, those that are held back are shed before queued ones, and the newest first."""
    queue = RequestQueue(9)
    admit(queue, "a1", "a", priority=1)
    early, late = admit(queue, "a2", "a", priority=1), admit(queue, "a3", "a", priority=1)
    admit(queue, "b1", "b", priority=1)
    newest = admit(queue, "b2", "b", priority=1)
    for expected in (newest, late, early):
        assert queue.least_urgent() is expected
        queue.end(expected)
    assert queue.least_urgent().request == "b1"

    urgent = admit(queue, "b3", "b", priority=0)
    assert queue.least_urgent().request == "b1"
    queue.end(urgent)
    last = admit(queue, "b4", "b", priority=7)
    assert queue.least_urgent() is last
