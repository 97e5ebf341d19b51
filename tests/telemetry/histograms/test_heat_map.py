"""LatencyHeatMap: each response is in its cell, and lines are the percentiles of each interval."""

import numpy as np
import pytest

from streaminfer.telemetry import Interval, LatencyHeatMap, LatencyHistogram


def recorded(*seconds):
    histogram = LatencyHistogram()
    histogram.record_many(np.array(seconds))
    return histogram


def series(*histograms, gap_s=0.0):
    """Return intervals of a second, one per histogram, with gaps between them."""
    starts_s = 100.0 + (1.0 + gap_s) * np.arange(len(histograms))
    return [
        Interval(start_s, start_s + 1.0, "", histogram)
        for start_s, histogram in zip(starts_s.tolist(), histograms, strict=True)
    ]


class TestOfRequests:
    def test_each_response_is_in_its_cell(self):
        rng = np.random.default_rng(3)
        at_s, latencies_s = rng.uniform(50.0, 80.0, 2000), rng.lognormal(-4.0, 1.5, 2000)

        found = LatencyHeatMap.of_requests(at_s, latencies_s)

        assert (found.edges_s[0], found.edges_s[-1]) == (at_s.min(), at_s.max())
        for (row, column), count in np.ndenumerate(found.counts):
            low, high = found.latency_edges_s[row : row + 2]
            begin, end = found.edges_s[column : column + 2]
            inside = (latencies_s >= low) & (latencies_s < high) & (at_s >= begin)
            inside &= at_s <= end if column == found.counts.shape[1] - 1 else at_s < end
            assert count == inside.sum()

    def test_rounded_bound_is_in_the_last_band(self):
        """A response at a bound that was rounded is in the last band."""
        found = LatencyHeatMap.of_requests([0.0, 1.0], [1e-6, 1e-5])  # 10 ** -5.0 may be a bit less than 1e-5

        assert (found.counts[0, 0], found.counts[-1, -1], found.counts.sum()) == (1, 1, 2)

    def test_lines_are_percentiles_of_each_interval(self):
        at_s, latencies_s = np.repeat(np.arange(120.0), 50), np.random.default_rng(4).lognormal(-4.0, 1.0, 6000)

        found = LatencyHeatMap.of_requests(at_s, latencies_s)

        expected = np.quantile(latencies_s.reshape(120, 50), (0.5, 0.99), axis=1)
        assert found.quantiles_s == pytest.approx(expected)

    @pytest.mark.parametrize("latency_s", [0.0, 1e-9, 1e-6, 1e-3, 0.01, 1.0, 1000.0])
    def test_every_response_has_a_row(self, latency_s):
        """Durations at the end of a decade and those below a microsecond have a row."""
        assert LatencyHeatMap.of_requests([0.0, 1.0], [latency_s, 0.05]).counts.sum() == 2

    def test_requests_without_a_response_are_left_out(self):
        found = LatencyHeatMap.of_requests([0.0, 1.0, 2.0], [0.01, np.nan, 0.02])

        assert found.counts.sum() == 2
        assert np.isnan(found.quantiles_s[:, 60]).all()

    def test_arrays_of_different_shapes_are_an_error(self):
        with pytest.raises(ValueError, match="latencies_s: expected an array of the shape of at_s"):
            LatencyHeatMap.of_requests([0.0, 1.0], [0.01])


class TestOfIntervals:
    def test_columns_are_the_intervals(self):
        found = LatencyHeatMap.of_intervals(series(recorded(0.01, 0.02), recorded(), recorded(0.5)))

        assert found.edges_s.tolist() == [100.0, 101.0, 102.0, 103.0]
        assert found.counts.sum(axis=0).tolist() == [2, 0, 1]
        assert found.quantiles_s[0] == pytest.approx([0.01, np.nan, 0.5], rel=1e-3, nan_ok=True)
        assert found.quantiles_s[1] == pytest.approx([0.02, np.nan, 0.5], rel=1e-3, nan_ok=True)
        (row,) = np.flatnonzero(found.counts[:, 2])
        assert found.latency_edges_s[row] <= 0.5 <= found.latency_edges_s[row + 1]

    def test_a_gap_belongs_to_the_later_interval(self):
        found = LatencyHeatMap.of_intervals(series(recorded(0.01), recorded(0.02), gap_s=4.0))

        assert found.edges_s.tolist() == [100.0, 101.0, 106.0]

    def test_many_intervals_share_columns(self):
        found = LatencyHeatMap.of_intervals(series(*(recorded(0.01 * number) for number in range(1, 302))))

        assert found.counts.shape[1] == 101
        assert found.counts.sum(axis=0).tolist() == [3] * 100 + [1]

    def test_intervals_must_be_in_order(self):
        with pytest.raises(ValueError, match="intervals: expected intervals in order of time"):
            LatencyHeatMap.of_intervals(series(recorded(0.01), recorded(0.02))[::-1])
