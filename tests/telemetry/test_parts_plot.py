"""Plot of the parts of a latency: its marks are the percentiles of each part, in their order."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from streaminfer.telemetry import LatencyHistogram, TelemetryStatistics


def recorded(scale_s):
    histogram = LatencyHistogram()
    if scale_s:
        histogram.record_many(scale_s * np.random.default_rng(7).lognormal(0.0, 0.5, 2000))
    return histogram


def test_marks_are_percentiles_of_nonempty_parts():
    """The marks are the percentiles of those parts of the latency that have responses."""
    parts = {"latency": 0.1, "queue": 0.05, "assembly": 0.0, "inference": 0.02, "delivery": 1e-4}
    histograms = {name: recorded(scale_s) for name, scale_s in parts.items()}
    statistics = TelemetryStatistics(name="faces", in_flight=0, outcomes={}, batch_sizes={}, **histograms)

    axes = statistics.plot(Figure().subplots())

    names = [text.get_text().split("\n")[0] for text in axes.get_yticklabels()]
    assert names == ["latency", "queue", "inference", "delivery"]
    marks = {line.get_label(): line for line in axes.lines}
    for label, q in {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}.items():
        assert marks[label].get_xdata() == pytest.approx([histograms[name].quantile(q) for name in names])
        assert [*marks[label].get_ydata()] == [0, 1, 2, 3]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first part is on top


def test_marks_at_the_edge_are_whole():
    """Marks of durations below a microsecond are at the edge of the axes, which does not clip them."""
    nothing = LatencyHistogram()
    nothing.record(0.0)
    parts = dict.fromkeys(("latency", "queue", "assembly", "inference", "delivery"), nothing)

    axes = TelemetryStatistics(name="faces", in_flight=0, outcomes={}, batch_sizes={}, **parts).plot(
        Figure().subplots()
    )

    assert [line.get_xdata()[0] for line in axes.lines] == [axes.get_xlim()[0]] * 4
    assert not any(line.get_clip_on() for line in axes.lines)
