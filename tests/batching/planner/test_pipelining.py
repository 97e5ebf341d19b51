"""PipelineOverhead: the overhead that it learns, its bounds, and the window in which a batch may be pipelined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.planner.pipelining import PipelineOverhead

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
SIZE, ALONE_NS = 16, 20 * MS


def learned(takes_ns, *, batches=400, noise=0.0, seed=0, spare_ns=MS):
    """Return the overhead learned from ``batches`` batches of 20 ms, one in 33 of them sent alone."""
    overhead, rng = PipelineOverhead(), np.random.default_rng(seed)
    for number in range(batches):
        took_ns = ALONE_NS * float(np.exp(noise * rng.standard_normal()))
        if number % 33 == 0:
            overhead.observe_alone(SIZE, round(took_ns))
            continue
        early_ns = overhead.overhead_ns + spare_ns
        overhead.observe_pipelined(SIZE, round(took_ns) - min(takes_ns, early_ns), early_ns)
    return overhead


@given(takes_us=st.integers(0, 10_000))
def test_any_overhead_is_learned(takes_us):
    takes_ns = takes_us * 1000
    assert learned(takes_ns, batches=3000).overhead_ns == pytest.approx(takes_ns, abs=1000)


@given(seed=st.integers(0, 2**32 - 1))
def test_noise_moves_the_overhead_little(seed):
    # noise of 2 % of 20 ms is 0.4 ms in each of the two durations that are compared
    assert learned(2 * MS, noise=0.02, batches=2000, seed=seed, spare_ns=3 * MS).overhead_ns == pytest.approx(
        2 * MS, abs=MS
    )


def test_batch_sent_alone_takes_the_overhead_longer():
    """Sent alone, a pipelined batch would take longer by the overhead, or by how early it was sent if that is less."""
    overhead = learned(2 * MS, batches=3000)
    assert overhead.observe_pipelined(SIZE, 18 * MS, 3 * MS) == pytest.approx(20 * MS, abs=1000)
    assert overhead.observe_pipelined(SIZE, 20 * MS - MS // 2, MS // 2) == pytest.approx(
        20 * MS, abs=1000
    )  # at most the lead is gained


def test_learned_overhead_is_at_most_the_lead():
    overhead = PipelineOverhead()
    for _ in range(1000):
        overhead.observe_alone(SIZE, 500 * MS)
        overhead.observe_pipelined(SIZE, 1, 2 * MS)  # both responses arrived at once, after a stall
    assert overhead.overhead_ns == pytest.approx(2 * MS, rel=0.01)


def test_batch_sent_too_late_to_queue_keeps_overhead():
    """A pipelined batch that was sent too late to wait at the model does not lower the overhead."""
    overhead = learned(2 * MS, batches=3000)
    before_ns = overhead.overhead_ns
    overhead.observe_alone(SIZE, ALONE_NS)
    overhead.observe_pipelined(SIZE, ALONE_NS - MS // 10, MS // 10)
    assert overhead.overhead_ns == before_ns


def test_a_stall_reduces_the_overhead_little():
    overhead = learned(2 * MS, batches=3000)
    before_ns = overhead.overhead_ns
    overhead.observe_alone(SIZE, ALONE_NS)
    overhead.observe_pipelined(SIZE, 1000 * MS, 3 * MS)
    assert 0.9 * before_ns < overhead.overhead_ns < before_ns
    for _ in range(2000):
        overhead.observe_alone(SIZE, ALONE_NS)
        overhead.observe_pipelined(SIZE, 1000 * MS, 3 * MS)
    assert overhead.overhead_ns == 0


def test_stall_of_a_batch_sent_alone_teaches_nothing():
    """A stall of a batch that was not pipelined does not change the overhead."""
    overhead = learned(2 * MS, batches=3000)
    before_ns = overhead.overhead_ns
    overhead.observe_alone(SIZE, 1000 * MS)
    for _ in range(8):
        overhead.observe_pipelined(SIZE, ALONE_NS - 2 * MS, 3 * MS)
    assert overhead.overhead_ns == pytest.approx(before_ns, abs=1000)


@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.05, 0.1, 0.2]))
def test_noise_without_overhead_teaches_little(seed, noise):
    # the noisier batches are, the earlier they are sent: the overhead that noise teaches has the size of the noise
    found = learned(0, noise=noise, batches=3000, seed=seed, spare_ns=round(MS + 4 * noise * ALONE_NS))
    assert found.overhead_ns <= noise * ALONE_NS


def test_overhead_is_at_most_half_of_a_batch():
    """The overhead is never more than half of the duration of a batch."""
    overhead = PipelineOverhead()
    for _ in range(1000):
        overhead.observe_alone(SIZE, 20 * MS)
        overhead.observe_pipelined(SIZE, MS, 100 * MS)
    assert overhead.overhead_ns == 10 * MS


def test_only_first_8_of_one_size_are_compared():
    """Only the first 8 pipelined batches after one sent alone are compared with it, if they have its size."""
    overhead = PipelineOverhead()
    overhead.observe_alone(SIZE, 20 * MS)
    for size in (SIZE - 1, SIZE + 1, 1):
        overhead.observe_pipelined(size, 15 * MS, 8 * MS)
        assert overhead.overhead_ns == 0
    taught = 0
    for number in range(1, 21):
        before_ns = overhead.overhead_ns
        overhead.observe_pipelined(SIZE, 20 * MS - number * MS // 10, 8 * MS)
        taught += overhead.overhead_ns != before_ns
    assert taught == 5  # three of the first 8 were of other sizes


def test_unpipelined_batch_is_due_after_32_pipelined():
    overhead = PipelineOverhead()
    for _ in range(32):
        from_ns, until_ns = overhead.window_ns(100 * MS, MS)
        assert from_ns <= until_ns
        overhead.observe_pipelined(SIZE, 20 * MS, 5 * MS)
    from_ns, until_ns = overhead.window_ns(100 * MS, MS)
    assert until_ns < from_ns
    overhead.observe_alone(SIZE, 20 * MS)
    from_ns, until_ns = overhead.window_ns(100 * MS, MS)
    assert from_ns <= until_ns


def test_window_opens_before_the_earliest_end():
    """The window opens before the earliest end of a batch by the overhead and a loop delay of 1 ms.

    The earliest end is 2.5 margins before the upper estimate; the window closes one margin after that estimate.
    """
    overhead = learned(2 * MS, batches=3000)
    from_ns, until_ns = overhead.window_ns(100 * MS, 2 * MS)
    assert from_ns == 100 * MS - 5 * MS - overhead.overhead_ns - MS
    assert until_ns == 102 * MS


def test_effective_start_is_never_before_send():
    """A pipelined batch starts one overhead before its predecessor ends, but never before it was sent."""
    overhead = learned(2 * MS, batches=3000)
    assert overhead.effective_start_ns(90 * MS, 100 * MS) == 100 * MS - overhead.overhead_ns
    assert overhead.effective_start_ns(99 * MS, 100 * MS) == 99 * MS
