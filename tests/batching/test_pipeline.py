"""`Pipeline`: the one batch that was sent before a worker was free, and when it counts as running."""

import pytest

from streaminfer.batching.pipeline import Pipeline
from streaminfer.batching.policy import PolicyCapabilities
from streaminfer.batching.queue._ticket_cy import UNKNOWN, Execution

pytestmark = pytest.mark.uncompiled


def batch_of(started_ns):
    batch = Execution()
    batch.effective_start_ns = started_ns
    return batch


def test_a_pipeline_without_a_policy_is_closed():
    """No batch is sent early if the policy or the model does not pipeline."""
    assert not Pipeline().is_open


def test_pipeline_holds_one_early_batch():
    """A second batch is not sent early before the first one has started."""
    pipeline = Pipeline()
    pipeline.offered = PolicyCapabilities(choose_pipelined=lambda *_: None)
    assert pipeline.is_open

    pipeline.take(batch_of(0))

    assert not pipeline.is_open
    assert pipeline.sent == 1


def test_started_leaves_the_early_batch_out():
    """An early batch that waits at the model is not among the batches that have started."""
    pipeline = Pipeline()
    running, early = batch_of(5), batch_of(9)
    pipeline.take(early)

    assert pipeline.started([running, early]) == [(5, 0)]


def test_early_batch_ending_first_teaches_nothing():
    """The start of an early batch that ends before its predecessor is unknown."""
    pipeline = Pipeline()
    early = batch_of(0)
    pipeline.take(early)

    assert not pipeline.end(early, 100, is_known=True)

    assert early.predecessor_end_ns == UNKNOWN
    assert pipeline.batch is None


def test_early_batch_starts_when_its_predecessor_ends():
    """The policy defines the instant from which an early batch counts as running."""
    pipeline = Pipeline()
    pipeline.offered = PolicyCapabilities(effective_start_ns=lambda sent_ns, ended_ns: ended_ns - 3)
    early = batch_of(0)

    pipeline.take(early)
    assert pipeline.end(batch_of(0), 100, is_known=True)

    assert pipeline.batch is None
    assert (early.effective_start_ns, early.predecessor_end_ns) == (97, 100)


def test_batch_behind_a_failed_batch_is_not_observed():
    """An early batch behind a failed one is not observed, because the instant when the model was free is unknown."""
    pipeline = Pipeline()
    learned = []
    pipeline.offered = PolicyCapabilities(
        effective_start_ns=lambda sent_ns, ended_ns: ended_ns - 3,
        observe_pipelined=lambda *batch: learned.append(batch),
    )
    early = batch_of(0)

    pipeline.take(early)
    assert pipeline.end(batch_of(0), 100, is_known=False)

    assert pipeline.batch is None
    assert (early.effective_start_ns, early.predecessor_end_ns) == (100, UNKNOWN)
    assert not pipeline.observe(early, 200, 0)
    assert learned == []


def test_observe_gets_the_duration_of_an_early_batch():
    """The policy learns the time from the end of the previous batch to the end of the early one."""
    pipeline = Pipeline()
    learned = []
    pipeline.offered = PolicyCapabilities(observe_pipelined=lambda *batch: learned.append(batch))
    early = batch_of(0)
    pipeline.take(early)
    pipeline.end(batch_of(0), 100, is_known=True)
    early.predecessor_end_ns = 100

    assert pipeline.observe(early, 250, 2)
    assert learned == [(0, 150, 250, 100, 2)]
