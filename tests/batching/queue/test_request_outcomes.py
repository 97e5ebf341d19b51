"""`RequestOutcomes`: each request completes once, with its error, and is counted by its outcome."""

import pickle

import pytest

import streaminfer as si
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.batching.queue.request_outcomes import RequestOutcomes

pytestmark = pytest.mark.uncompiled


class Future:
    def __init__(self, cancelled=False):
        self.cancelled = cancelled
        self.error = None

    def done(self):
        return self.cancelled or self.error is not None

    def set_exception(self, error):
        self.error = error


@pytest.fixture
def queue():
    return RequestQueue(8)


@pytest.fixture
def outcomes(queue):
    return RequestOutcomes(queue, "faces")


def admit(queue, future, deadline_ns=NEVER):
    return queue.admit(None, 1.0, future, 0, deadline_ns, 0)


COMPLETIONS = {
    "failed": (lambda outcomes, ticket: outcomes.fail([ticket], ValueError("x")), "failed", si.BackendError),
    "rejected": (lambda outcomes, ticket: outcomes.reject([ticket], "late: no", 0), "late", si.DeadlineExceeded),
    "closed": (lambda outcomes, ticket: outcomes.close([ticket]), "closed", si.Closed),
    "shed": (lambda outcomes, ticket: outcomes.shed(ticket, 0, "full", 0.1), "shed", si.Overloaded),
    "expired": (lambda outcomes, _: outcomes.expire(10), "deadline_exceeded", si.DeadlineExceeded),
}
variants = pytest.mark.parametrize(("complete", "counter", "kind"), COMPLETIONS.values(), ids=list(COMPLETIONS))


def test_error_of_a_batch_has_its_timings(queue, outcomes):
    """Each caller gets an error with the timings of its own request, or without timings if the batch never started."""
    tickets = [admit(queue, Future()) for _ in range(2)]
    futures = [ticket.future for ticket in tickets]
    queue.take(tickets, 5, "full")

    outcomes.fail(tickets, ValueError("x"), 20, 12)

    for future in futures:
        timings = future.error.timings
        assert (timings.started_ns, timings.assembled_ns, timings.inferred_ns, timings.batch_size) == (5, 12, 20, 2)
        assert pickle.loads(pickle.dumps(future.error)).timings.inferred_ns == 20

    waiting = admit(queue, Future())
    future = waiting.future
    outcomes.fail([waiting], ValueError("x"))
    assert future.error.timings is None


@variants
def test_a_request_completes_with_its_error(queue, outcomes, complete, counter, kind):
    """The caller gets the error of its outcome, and the outcome is counted once."""
    future = Future()
    ticket = admit(queue, future, 10)

    complete(outcomes, ticket)

    assert isinstance(future.error, kind)
    assert outcomes.rejected.get(counter) or getattr(outcomes, counter) == 1
    assert ticket.state == "done"


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_cancelled_request_is_counted_as_cancelled(queue, outcomes, name):
    """A request whose caller cancelled its future gets no error, and is counted as cancelled only."""
    complete, _, _ = COMPLETIONS[name]
    future = Future(cancelled=True)
    ticket = admit(queue, future, 10)

    complete(outcomes, ticket)

    assert future.error is None
    assert outcomes.cancelled == 1
    assert (outcomes.failed, outcomes.deadline_exceeded, outcomes.closed, outcomes.rejected) == (0, 0, 0, {})


def test_expire_returns_batches_of_running_requests(queue, outcomes):
    """`expire` returns the batch of a running request, so that the batch can be cancelled."""
    batch = queue.take([admit(queue, Future(), 10)], 0, "full")
    admit(queue, Future(), 10)

    assert outcomes.expire(10) == [batch]


def test_forget_settles_no_future(queue, outcomes):
    """`forget` does not settle futures, because their event loop is closed."""
    future = Future()
    ticket = admit(queue, future)

    outcomes.forget([ticket])

    assert (ticket.state, future.error, outcomes.closed) == ("done", None, 1)
