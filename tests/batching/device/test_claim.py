"""`Claim`: a preemptive device's knowledge of one model."""

import pytest

from streaminfer.batching.device.claim import Claim
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.protocols import BackgroundRuns


def claim(durations=lambda size: size, runs=None, queue=None):
    made = Claim(RequestQueue(10) if queue is None else queue, durations, runs)
    made.change(100, 4)
    return made


@pytest.mark.parametrize(
    ("durations", "saving"),
    [
        (lambda size: 8, 0.75),
        (lambda size: 8 * size, 0.0),
        (lambda size: 8 * size**2, 0.0),
        (lambda size: 0, 1.0),
        (lambda size: 8 * (size == 1), 1.0),
    ],
    ids=["set-up alone", "no set-up", "slower", "unknown", "half known"],
)
def test_saving_is_time_saved_per_request_when_full(durations, saving):
    """The saving is the share of a single request's time that a full batch takes less per request."""
    assert claim(durations).saving() == saving


def test_batcher_without_objective_is_least_urgent():
    """A batcher without an objective counts as the least urgent one."""
    patient = claim()

    patient.change(None, 4)

    assert patient.slo_ns == NEVER


def test_is_full_once_a_full_batch_is_queued():
    queue = RequestQueue(10)
    full = claim(queue=queue)
    seen = []
    for _ in range(4):
        seen.append(full.is_full)
        queue.admit(None, None, None, 0, NEVER, 0)

    assert (seen, full.is_full) == ([False] * 4, True)


def test_a_changed_objective_is_reported_to_the_device():
    told, watched = [], claim()
    watched.changed = lambda: told.append(watched.slo_ns)

    watched.change(50, 4)

    assert told == [50]


def test_backend_without_background_runs_is_not_called():
    runs = claim().runs

    runs.set_background(True)
    runs.raise_running()
    runs.yield_running()

    assert (runs.running_ns(), runs.ended_ns()) == (None, None)
    assert runs.obstacle() == "its backend offers no BackgroundRuns"


def test_a_backend_without_obstacle_runs_in_background():
    told = []
    runs = claim(runs=BackgroundRuns(told.append, lambda: told.append("raised"))).runs

    runs.set_background(True)
    runs.raise_running()
    runs.yield_running()  # the backend does not offer it

    assert (runs.obstacle(), told) == ("", [True, "raised"])
    assert (runs.running_ns(), runs.ended_ns()) == (None, None)
