"""Frames of a device: their order, jitter, loss and skew, by seed."""

from itertools import islice

import numpy as np
import pytest

from streaminfer.loadtest.devices.delivery import Delivery, captures
from streaminfer.loadtest.path import Link, NetworkProfile


def take(delivery, count=4_000, period_s=0.04, seed=3):
    return list(islice(captures(delivery, period_s, seed), count))


def test_captures_repeat_by_seed():
    delivery = Delivery(jitter_s=0.01, loss=0.1)

    assert take(delivery) == take(delivery)
    assert take(delivery) != take(delivery, seed=4)


def test_delivery_is_after_capture_and_in_order():
    """No frame is delivered before its capture, and frames are delivered in order."""
    frames = [it for it in take(Delivery(jitter_s=0.05, loss=0.1)) if it.delivered_ns is not None]

    assert all(it.delivered_ns >= it.captured_ns for it in frames)
    assert np.all(np.diff([it.delivered_ns for it in frames]) >= 0)


def test_jitter_is_the_standard_deviation_of_the_delay():
    delays = [it.delivered_ns - it.captured_ns for it in take(Delivery(jitter_s=0.005), 20_000)]

    assert np.std(delays) / 1e9 == pytest.approx(0.005, rel=0.05)


def test_fast_clock_shortens_the_period():
    frames = take(Delivery(skew_ppm=1_000), 1_001)

    assert frames[1_000].captured_ns == round(1_000 * 0.04e9 / 1.001)


@pytest.mark.parametrize(
    "wrong",
    [{"jitter_s": -1.0}, {"loss": 1.0}, {"loss_run": 0.5}, {"skew_ppm": 1e6}],
    ids=lambda it: next(iter(it)),
)
def test_wrong_argument_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Delivery(**wrong)


def test_jitter_is_independent_of_the_networks():
    """A device and a network of one seed have independent delays; equal delays would double the variance of the sum."""
    link = Link(NetworkProfile(name="n", jitter_s=0.005), 3)
    network_ns = [link.send(100, number * 10**9) - number * 10**9 for number in range(2_000)]
    device_ns = [it.delivered_ns - it.captured_ns for it in take(Delivery(jitter_s=0.005), 2_000, period_s=1.0)]

    assert abs(np.corrcoef(network_ns, device_ns)[0, 1]) < 0.1
