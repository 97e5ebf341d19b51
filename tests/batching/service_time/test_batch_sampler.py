"""BatchSampler: the batches that are learned and those that are skipped, compiled and uncompiled."""

import numpy as np
import pytest

from streaminfer.batching.queue import _ticket_cy
from streaminfer.batching.service_time import _batch_sampler_cy
from streaminfer.batching.service_time.latency_model import nearest_size, size_steps

pytestmark = pytest.mark.uncompiled

INTERVAL_NS = 1000
ALWAYS_NS = 950
EXPECTED_NS = 100


@pytest.fixture(params=["as built", "plain"])
def twin(request, plain):
    """Return the modules of `BatchSampler` and `Execution`, as built or uncompiled."""
    if request.param == "plain":
        return plain("batching.service_time._batch_sampler_cy"), plain("batching.queue._ticket_cy")
    return _batch_sampler_cy, _ticket_cy


@pytest.fixture
def sampler(twin):
    made = twin[0].BatchSampler(INTERVAL_NS, ALWAYS_NS)
    made.expect(np.full(9, EXPECTED_NS), size_steps(8))
    return made


def ran(ticket_cy, size, *, effective_start_ns=0, predecessor_end_ns=0, abandoned=False):
    run = ticket_cy.Execution()
    run.tickets.extend([None] * size)
    run.effective_start_ns, run.predecessor_end_ns, run.abandoned = effective_start_ns, predecessor_end_ns, abandoned
    return run


def learned(sampler, batches):
    """Offer ``(size, duration_ns)`` of batches that may all be skipped, and return the numbers of those learned."""
    chosen = []
    for number, (size, duration_ns) in enumerate(batches):
        if not sampler.skip(size, duration_ns, False, opens=True):
            chosen.append(number)
            sampler.restart()
    return chosen


def test_a_closed_step_skips_nothing(sampler):
    """Batches of a size are skipped once one of them has opened the step of that size."""
    assert not sampler.skip(2, 100, False)

    assert sampler.skip(2, 100, False, opens=True)
    assert sampler.skip(2, 100, False)
    assert not sampler.skip(3, 100, False)


def test_sizes_of_one_step_open_together(sampler):
    """Sizes 7 and 8 share a step; size 5 has another one."""
    sampler.skip(8, 100, False, opens=True)

    assert sampler.skip(7, 100, False)
    assert not sampler.skip(5, 100, False)


def test_one_batch_an_interval_is_learned(sampler):
    """On average, one batch is learned for each interval of expected durations; intervals vary by half."""
    chosen = learned(sampler, [(2, 100)] * 10_000)

    apart = np.diff(chosen)
    assert len(chosen) == pytest.approx(1000, rel=0.06)
    assert apart.min() >= 5
    assert apart.max() <= 15


def test_long_batches_are_learned_no_more_often(sampler):
    """Whether a batch is learned does not depend on how long it took: one in twenty takes long, also of the sample."""
    rng = np.random.default_rng(0)
    durations = np.where(rng.random(40_000) < 0.05, 300, 100)

    chosen = learned(sampler, [(2, duration) for duration in durations.tolist()])

    assert (durations[chosen] == 300).mean() == pytest.approx(0.05, abs=0.015)


def test_alternating_sizes_are_all_learned(sampler):
    """Two sizes that alternate both have their part of the sample."""
    batches = [(2, 100), (8, 100)] * 5000

    chosen = learned(sampler, batches)

    assert 0.3 < sum(batches[number][0] == 8 for number in chosen) / len(chosen) < 0.7


def test_a_much_slower_model_is_learned_soon(sampler):
    """Of four batches in a row that take over twice as long as expected, the last one is learned."""
    offered = [sampler.skip(2, 201, False, opens=True) for _ in range(4)]

    assert offered == [True, True, True, False]


def test_a_batch_as_expected_ends_a_row_of_slow_ones(sampler):
    """Three slow batches, one that is not slow, and another slow one are no change."""
    for duration_ns in (201, 201, 201, 200):
        assert sampler.skip(2, duration_ns, False, opens=True)

    assert sampler.skip(2, 201, False)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.exponential(100, 60_000),
        lambda rng: rng.lognormal(4.0, 1.0, 60_000),
        lambda rng: np.where(rng.random(60_000) < 0.1, 1000, 100),
    ],
    ids=["exponential", "lognormal", "one in ten"],
)
def test_samples_have_the_mean_of_all(sampler, draw):
    """The mean of the batches that are learned is that of all, also if durations scatter widely."""
    durations = draw(np.random.default_rng(0)).astype(int)
    sampler.expect(np.full(9, int(durations.mean())), size_steps(8))

    chosen = learned(sampler, [(2, duration) for duration in durations.tolist()])

    assert durations[chosen].mean() == pytest.approx(durations.mean(), rel=0.1)


def test_batches_of_long_sizes_are_always_learned(sampler):
    """A batch of a size that is expected to take long is learned, however short it was."""
    sampler.expect(np.array([0, ALWAYS_NS - 1, ALWAYS_NS]), size_steps(2))

    assert not sampler.skip(2, 1, False, opens=True)
    assert sampler.skip(1, ALWAYS_NS, False, opens=True)


@pytest.mark.parametrize("size", [-1, 9], ids=["negative", "beyond-the-tables"])
def test_a_size_without_an_expectation_is_learned(sampler, size):
    """A batch whose size is not in the tables is learned."""
    assert not sampler.skip(size, 1, False, opens=True)


def test_everything_is_learned_before_any_expectation(twin):
    """Before `expect`, the tables have only size 0, which no batch has, so every batch is learned."""
    assert not twin[0].BatchSampler(INTERVAL_NS, ALWAYS_NS).skip(1, 1, False, opens=True)


def test_a_batch_to_learn_is_not_counted(sampler):
    """A batch that ends the interval is not counted, however often it is offered."""
    for _ in range(9):
        sampler.skip(2, 100, False, opens=True)

    assert not sampler.skip(2, 100, False)
    assert not sampler.skip(2, 100, False, opens=True)
    sampler.expect(np.full(9, EXPECTED_NS - 1), size_steps(8))
    assert sampler.skip(2, 100, False)


def test_the_mean_with_the_batch_before_is_learned(sampler):
    """If a batch seems to take long because its end was noticed late, the next one takes no time: the mean is right."""
    sampler.expect(np.array([0, 50, 100]), size_steps(2))
    assert sampler.smoothed_ns(1, 100) == 100
    sampler.skip(2, 190, False, opens=True)

    assert sampler.smoothed_ns(2, 10) == 100
    assert sampler.smoothed_ns(1, 5) == 50
    assert sampler.smoothed_ns(9, 7) == 7
    sampler.restart()
    assert sampler.smoothed_ns(2, 10) == 10


def test_restart_closes_all_steps(sampler):
    """After `restart`, steps are closed, and neither the interval nor a row of slow batches continues."""
    for _ in range(3):
        sampler.skip(2, 300, False, opens=True)

    sampler.restart()

    assert not sampler.skip(2, 300, False)
    assert [sampler.skip(2, 300, False, opens=True) for _ in range(4)] == [True, True, True, False]


def test_a_run_counts_from_its_turn(sampler, twin):
    """An execution counts with the number of its tickets and the time from its effective start to its end."""
    sampler.skip(2, 100, False, opens=True)

    took = [sampler.skip_execution(ran(twin[1], 2, effective_start_ns=1000), 1000 + 201) for _ in range(4)]

    assert took == [True, True, True, False]


def test_cancelled_batches_are_skipped_as_others(sampler, twin):
    """A cancelled batch is skipped as others are, because long batches are cancelled more often."""
    sampler.skip(2, 100, False, opens=True)

    assert sampler.skip_execution(ran(twin[1], 2, abandoned=True), 100)


def test_a_cancelled_batch_is_in_no_mean(sampler):
    """A batch that was cancelled early says nothing about how long batches take."""
    sampler.skip(2, 100, False, opens=True)

    assert sampler.skip(2, 1, True)

    assert sampler.smoothed_ns(2, 100) == 100


@pytest.mark.parametrize("predecessor_end_ns", [5, -1], ids=["ahead", "unknown"])
def test_pipelined_runs_are_not_skipped(sampler, twin, predecessor_end_ns):
    """A pipelined batch does not count as one that was sent alone."""
    sampler.skip(2, 100, False, opens=True)

    assert not sampler.skip_execution(ran(twin[1], 2, predecessor_end_ns=predecessor_end_ns), 100)


def test_the_largest_batch_of_all_has_a_step(twin):
    """There is a step for each result of `nearest_size`, up to the largest batch size that a batcher accepts."""
    octaves = [2.0**octave for octave in range(32)]
    steps = {nearest_size(round(size)) for low in octaves for size in (low, low + 1, low * 2**0.5) if size < 2**31}
    sampler = twin[0].BatchSampler(INTERVAL_NS, ALWAYS_NS)
    sampler.expect(np.full(2, EXPECTED_NS), np.array([0, len(steps) - 1]))
    assert sampler.skip(1, 100, False, opens=True)
