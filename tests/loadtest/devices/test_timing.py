"""Timing from timestamps: the measures are those of the device that made the timestamps."""

from itertools import islice

import numpy as np
import pytest

from streaminfer.loadtest.devices.delivery import Delivery, captures
from streaminfer.loadtest.devices.timing import measure_timing


def received(delivery, *, count=5_000, rate=30.0, seed=7):
    """Return the delays and the timestamps of the frames that arrived."""
    frames = [it for it in islice(captures(delivery, 1 / rate, seed), count) if it.delivered_ns is not None]
    delays = [(it.delivered_ns - it.captured_ns) / 1e9 for it in frames]
    return delays, [it.delivered_ns / 1e9 for it in frames]


@pytest.mark.parametrize("rate", [15.0, 24.0, 30.0, 17.3])
@pytest.mark.parametrize("jitter_s", [0.0, 0.002, 0.006])
@pytest.mark.parametrize(("loss", "run"), [(0.0, 1.0), (0.05, 1.0), (0.1, 4.0)])
def test_timing_is_within_ten_percent(rate, jitter_s, loss, run):
    delays, stamps = received(Delivery(jitter_s=jitter_s, loss=loss, loss_run=run, skew_ppm=80.0), rate=rate)
    lost = 1 - len(stamps) / 5_000
    timing = measure_timing(stamps)

    assert timing.jitter_s == pytest.approx(np.std(delays), rel=0.1, abs=1e-8)
    assert timing.loss == pytest.approx(lost, rel=0.1, abs=1e-3)
    assert timing.loss_run == pytest.approx(max(run, 1 / (1 - loss)), rel=0.1)
    assert timing.skew_ppm(1 / rate) == pytest.approx(80.0, rel=0.1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_strong_jitter_moves_no_numbers(loss, seed):
    """A frame that comes a little early does not get the number of the one before, which would shift later numbers."""
    delays, stamps = received(Delivery(jitter_s=0.01, loss=loss), count=8_000, seed=seed)
    timing = measure_timing(stamps)

    assert timing.jitter_s == pytest.approx(np.std(delays), rel=0.1)
    assert timing.skew_ppm(1 / 30) == 0.0


def test_strong_jitter_is_ordered_by_strength():
    measured = [measure_timing(received(Delivery(jitter_s=jitter_s))[1]).jitter_s for jitter_s in (0.01, 0.02, 0.05)]

    assert measured == sorted(measured)


@pytest.mark.parametrize(("jitter_s", "loss"), [(0.008, 0.01), (0.012, 0.02)], ids=["phone", "telephone"])
def test_strong_jitter_of_known_period_is_measured(jitter_s, loss):
    """With a known period, strong jitter and loss are measured within 10 %.

    The packets of sound have a known length; jitter this strong hides the period in their timestamps.
    """
    off = []
    for seed in range(9):
        delivery = Delivery(jitter_s=jitter_s, loss=loss, loss_run=2.0)
        delays, stamps = received(delivery, count=3_000, rate=50.0, seed=seed)
        timing = measure_timing(stamps, nominal_period_s=0.02)
        off.append((abs(timing.jitter_s / np.std(delays) - 1), abs(timing.loss / (1 - len(stamps) / 3_000) - 1)))

    assert (np.median(off, axis=0) < 0.1).all()


@pytest.mark.parametrize("count", [40, 60, 300, 900])
@pytest.mark.parametrize("periods", [0.6, 1.0, 2.0])
def test_jitter_that_hides_the_period_makes_no_losses(count, periods):
    """No frame counts as lost if few frames agree by chance, or if strong jitter delivers frames in bunches."""
    lost = [
        measure_timing(received(Delivery(jitter_s=periods / 30.0), count=count, seed=seed)[1]).loss for seed in range(9)
    ]

    assert lost == [0.0] * 9


def test_packets_of_several_lengths():
    """No packet counts as lost if most packets are shorter than the longest, whose length is taken for the period."""
    stamps = np.cumsum(np.random.default_rng(1).choice([0.003, 0.007, 0.02], 500))

    assert measure_timing(stamps, nominal_period_s=0.02).loss == measure_timing(stamps).loss == 0.0


def test_skew_below_the_noise_is_not_claimed():
    _, stamps = received(Delivery(jitter_s=0.006, skew_ppm=5.0), count=100)

    assert measure_timing(stamps).skew_ppm(1 / 30.0) == 0.0


@pytest.mark.parametrize("stamps", [[], [1.0], [1.0, 2.0], [3.0, 3.0, 3.0]], ids=["none", "one", "two", "equal"])
def test_too_few_frames_have_no_period(stamps):
    timing = measure_timing(stamps)

    assert (timing.frames, timing.period_s, timing.jitter_s, timing.loss) == (len(stamps), 0.0, 0.0, 0.0)
