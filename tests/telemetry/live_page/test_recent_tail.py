"""Percentiles of the last seconds, compared with a histogram that has only these seconds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.live_page.recent_tail import RecentTail

pytestmark = pytest.mark.uncompiled

SECOND = 10**9
SHARES = (1.0, 0.99, 0.5, 0.0)


@given(st.lists(st.lists(st.floats(1e-6, 10.0), max_size=20), min_size=1, max_size=12))
def test_tail_equals_that_of_the_window(turns):
    """The tail has the quantiles of the last three turns, for any records in each turn."""
    histogram = LatencyHistogram()
    tail = RecentTail(histogram, 3.0)
    tail.quantiles(SHARES, -SECOND)
    for turn, latencies in enumerate(turns):
        histogram.record_many(latencies)
        shown = tail.quantiles(SHARES, turn * SECOND)
        recent = LatencyHistogram()
        for others in turns[max(0, turn - 2) : turn + 1]:
            recent.record_many(others)
        if not recent.count:
            assert all(map(math.isnan, shown))
        else:
            # a histogram clips its ends to the exact extremes; the tail has parts only
            for share, seconds in zip(SHARES, shown, strict=True):
                exact = recent.quantile(share)
                assert exact <= seconds * (1 + 1e-9)
                assert seconds <= exact * 1.01 + 1e-5


def test_tail_survives_a_reset():
    histogram = LatencyHistogram()
    tail = RecentTail(histogram, 10.0)
    tail.quantiles(SHARES, -SECOND)
    histogram.record_many([0.1] * 50)
    tail.quantiles(SHARES, 0)
    histogram.reset()
    histogram.record(0.2)
    assert tail.quantiles([1.0], SECOND)[0] >= 0.2
    assert tail.quantiles([1.0], 10 * SECOND)[0] >= 0.2
    assert math.isnan(tail.quantiles([1.0], 11 * SECOND)[0])


def test_records_maybe_before_the_window_are_ignored():
    """Records that may be older than the window are ignored.

    An operator who opens the page in an incident sees the present, and not the mean of a good day before.
    """
    histogram = LatencyHistogram()
    tail = RecentTail(histogram, 10.0)
    for now_s in (86_400, 2 * 86_400):  # the first read, and a read after a day without one
        histogram.record_many([0.001] * 100_000)
        assert math.isnan(tail.quantiles([0.99], now_s * SECOND)[0])
        histogram.record_many([0.5] * 10)
        assert tail.quantiles([0.99], (now_s + 1) * SECOND)[0] >= 0.5
    histogram.record_many([1.0] * 10)
    assert tail.quantiles([0.99], (now_s + 11) * SECOND)[0] >= 1.0  # the last read was exactly one window ago
