"""Displays of LatencyHistogram: text, HTML, plot."""

import html.parser
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from streaminfer._internal.units import format_duration
from streaminfer.errors import MissingExtra
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram


def recorded(milliseconds, **layout):
    histogram = LatencyHistogram(**layout)
    histogram.record_many(np.asarray(milliseconds) / 1000)
    return histogram


def test_repr_tells_count_quantiles_and_maximum():
    histogram = recorded(range(1, 1001))
    p50, p99, p999 = (format_duration(histogram.quantile(q)) for q in (0.5, 0.99, 0.999))
    assert repr(histogram) == f"LatencyHistogram(count=1000, p50={p50}, p99={p99}, p99.9={p999}, max=1 s)"
    assert p50.startswith("500")
    assert p99.startswith("990")


def test_repr_tells_what_was_clamped():
    assert repr(recorded([1, 3000], highest_s=2.0)).endswith("max=2 s, clamped=1)")


def test_repr_of_an_empty_histogram_and_a_subclass():
    class Mine(LatencyHistogram):
        pass

    assert repr(LatencyHistogram()) == "LatencyHistogram(count=0)"
    assert repr(Mine()) == "Mine(count=0)"


class Cells(html.parser.HTMLParser):
    """Parser that collects the names and values of the rows, and all tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.attributes, self.open = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.rows[-1].append(data)


def test_html_is_self_contained_picture_and_table():
    """The HTML is a picture and a table that load nothing."""
    histogram = recorded([*range(1, 2001), 10**9])
    picture, table = histogram._repr_html_().split("</svg>")
    assert picture.startswith('<svg role="img" aria-label="Latency by percentile: LatencyHistogram(count=2001, ')
    assert not re.search(r'(?:src|href)="(?!#)', picture)
    cells = Cells(table.strip())
    rows = dict(cells.rows)
    assert list(rows) == [
        "count", "min", "p50", "p90", "p99", "p99.9", "p99.99", "max", "mean", "standard deviation", "clamped",
    ]  # fmt: skip
    assert rows["count"] == "2,001"
    assert rows["min"] == "1 ms"
    assert rows["max"] == "60 min"
    assert rows["clamped"] == "1"
    assert rows["p90"] == format_duration(histogram.quantile(0.9))
    assert rows["mean"] == format_duration(histogram.mean)
    assert cells.open == []
    assert set(cells.tags) == {"table", "tbody", "tr", "th", "td"}
    assert cells.attributes <= {"style"}


def test_html_of_an_empty_histogram():
    assert Cells(LatencyHistogram()._repr_html_()).rows == [["count", "0"], ["clamped", "0"]]


@pytest.fixture
def pyplot():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt
    plt.close("all")


def test_plot_draws_the_quantile_function(pyplot):
    values = np.random.default_rng(5).lognormal(3, 1, 1000)
    histogram = recorded(values)
    ax = histogram.plot()
    (line,) = ax.lines
    x, y = line.get_xdata(), line.get_ydata()
    assert ax.get_xscale() == "log"
    assert (x[0], x[-1], y[-1]) == (1.0, 1000.0, histogram.max)
    assert (np.diff(x) >= 0).all()
    assert line.get_drawstyle() == "steps-post"
    # within each step the quantile is the height of the step
    for start, end, height in zip(x[:-1], x[1:], y[:-1], strict=True):
        if end > start:
            middle = 1 - 2 / (start + end)
            assert histogram.quantile(middle) == pytest.approx(height, rel=1e-12)
    ax.figure.canvas.draw()
    labels = {label.get_text() for label in ax.get_xticklabels()}
    assert {"0 %", "90 %", "99 %", "99.9 %"} <= labels
    assert any(label.get_text().endswith(("ms", "s")) for label in ax.get_yticklabels())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("percentile", "latency")


def test_plot_of_two_on_given_axes_shows_both_in_full(pyplot):
    _, ax = pyplot.subplots()
    assert recorded(range(1, 101)).plot(ax) is ax
    recorded(range(1, 5001)).plot(ax=ax)
    assert len(ax.lines) == 2
    ax.figure.canvas.draw()
    assert ax.get_xlim() == pytest.approx((1.0, 5000.0))
    assert ax.get_ylim()[0] == 0.0
    assert ax.get_ylim()[1] > 5.0  # a line beyond the axes would run over the legend
    assert len({line.get_color() for line in ax.lines}) == 2


def test_plot_of_one_duration_and_of_no_durations(pyplot):
    (line,) = recorded([5]).plot().lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 1.0], [0.005, 0.005])
    ax = LatencyHistogram().plot()
    assert ax.lines[0].get_xdata().size == 0
    ax.figure.canvas.draw()


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    """A plot without Matplotlib raises `MissingExtra`, which says how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(MissingExtra, match=r"pip install 'streaminfer\[plot\]'"):
        LatencyHistogram().plot()


def test_recording_loads_no_numba_or_matplotlib():
    """Importing the module and recording load neither Numba nor Matplotlib."""
    code = (
        "import sys; from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram as H; h = H(); h.record(0.1);"
        "h.record_many([0.1] * 4096); h.record_many([0.1] * 4097); repr(h); h.encode();"
        "print(sorted({'numba', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
