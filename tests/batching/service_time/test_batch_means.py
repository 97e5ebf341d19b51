"""BatchMeans: the batches that it absorbs and those that it does not, compiled and uncompiled."""

import numpy as np
import pytest

from streaminfer.batching.queue import _ticket_cy
from streaminfer.batching.service_time import _batch_means_cy
from streaminfer.batching.service_time.latency_model import nearest_size, size_steps

pytestmark = pytest.mark.uncompiled

WORK_NS = 1000
SINGLE_NS = 950
EXPECTED_NS = 100


@pytest.fixture(params=["as built", "plain"])
def twin(request, plain):
    """Return the modules of `BatchMeans` and `Execution`, as built or uncompiled."""
    if request.param == "plain":
        return plain("batching.service_time._batch_means_cy"), plain("batching.queue._ticket_cy")
    return _batch_means_cy, _ticket_cy


@pytest.fixture
def means(twin):
    made = twin[0].BatchMeans(WORK_NS, SINGLE_NS)
    made.expect(np.full(9, EXPECTED_NS), size_steps(8))
    return made


def ran(ticket_cy, size, *, effective_start_ns=0, predecessor_end_ns=0, abandoned=False):
    run = ticket_cy.Execution()
    run.tickets.extend([None] * size)
    run.effective_start_ns, run.predecessor_end_ns, run.abandoned = effective_start_ns, predecessor_end_ns, abandoned
    return run


def test_a_closed_step_absorbs_nothing(means):
    """Batches of a size are absorbed once one of them has opened the step of that size."""
    assert not means.absorb(2, 100)

    assert means.absorb(2, 100, opens=True)
    assert means.absorb(2, 100)
    assert not means.absorb(3, 100)


def test_sizes_of_one_step_share_a_mean(means):
    """Sizes 7 and 8 share a step and so a mean; size 5 has another step."""
    means.absorb(8, 100, opens=True)

    assert means.absorb(7, 200)
    assert not means.absorb(5, 100)
    assert means.mean_ns(8, 600) == 300
    assert means.mean_ns(5, 600) == 600


def test_a_long_batch_is_not_absorbed(means):
    """A batch that takes so long that it is learned alone is not absorbed, although it would fit into the mean."""
    assert not means.absorb(2, SINGLE_NS, opens=True)
    assert means.absorb(2, SINGLE_NS - 1, opens=True)


def test_batch_that_completes_the_work_is_not_absorbed(means):
    """The batch that completes the work of a mean is not absorbed.

    It is not counted, however often it is offered; a shorter batch is still absorbed.
    """
    means.absorb(2, 400, opens=True)
    means.absorb(3, 400, opens=True)

    assert not means.absorb(2, 200)
    assert not means.absorb(2, 200, opens=True)
    assert means.absorb(2, 199)
    assert means.mean_ns(2, 1) == 200


def test_a_batch_counts_as_its_expected_duration(means):
    """Ten batches, each expected to take a tenth of the work, complete a mean, however short they are."""
    absorbed = [means.absorb(2, 1, opens=True) for _ in range(10)]

    assert absorbed == [True] * 9 + [False]


@pytest.mark.parametrize("size", [-1, 9], ids=["negative", "beyond-the-tables"])
def test_a_size_without_an_expectation_is_not_absorbed(means, size):
    """A batch whose size is not in the tables is not absorbed, and its mean is its own duration."""
    assert not means.absorb(size, 1, opens=True)
    assert means.mean_ns(size, 7) == 7


def test_nothing_is_absorbed_before_any_expectation(twin):
    """Before `expect`, the tables have only size 0, which no batch has, so no batch is absorbed."""
    assert not twin[0].BatchMeans(WORK_NS, SINGLE_NS).absorb(1, 1, opens=True)


def test_clear_closes_all_steps(means):
    """After `clear`, steps are closed, the whole work remains, and earlier batches are in no mean."""
    means.absorb(2, 900, opens=True)

    means.clear()

    assert not means.absorb(2, 1)
    assert means.mean_ns(2, 5) == 5
    assert means.absorb(2, 900, opens=True)


def test_a_run_counts_from_its_turn(means, twin):
    """An execution is absorbed with the number of its tickets and the time from its effective start to its end."""
    means.absorb(2, 100, opens=True)

    assert means.absorb_execution(ran(twin[1], 2, effective_start_ns=1000), 1300)
    assert means.mean_ns(2, 200) == 200


@pytest.mark.parametrize(
    "how",
    [{"predecessor_end_ns": 5}, {"predecessor_end_ns": -1}, {"abandoned": True}],
    ids=["ahead", "unknown", "abandoned"],
)
def test_pipelined_or_cancelled_runs_are_not_absorbed(means, twin, how):
    """A pipelined or cancelled batch does not count as one that was sent alone."""
    means.absorb(2, 100, opens=True)

    assert not means.absorb_execution(ran(twin[1], 2, **how), 100)


def test_the_largest_batch_of_all_has_a_step(twin):
    """There is a step for each result of `nearest_size`, up to the largest batch size that a batcher accepts."""
    octaves = [2.0**octave for octave in range(32)]
    steps = {nearest_size(round(size)) for low in octaves for size in (low, low + 1, low * 2**0.5) if size < 2**31}
    means = twin[0].BatchMeans(WORK_NS, SINGLE_NS)
    means.expect(np.full(2, EXPECTED_NS), np.array([0, len(steps) - 1]))
    assert means.absorb(1, 100, opens=True)
