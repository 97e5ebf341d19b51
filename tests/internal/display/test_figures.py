"""Each picture of the package, drawn from extreme cases, can be printed, and its HTML has a bounded size."""

import functools
import sys

import attrs
import numpy as np
import pytest
from matplotlib.figure import Figure
from pictures import check_printable

from streaminfer._internal.display import figures
from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation import arrivals
from streaminfer.simulation.decision_log import DecisionLog
from streaminfer.simulation.scenarios import what_if
from streaminfer.simulation.simulation_result import SimulationResult
from streaminfer.simulation.simulator import simulate
from streaminfer.simulation.trace import Trace
from streaminfer.telemetry.cost.statistics import CostRow, CostStatistics, DeviceCost
from streaminfer.telemetry.histograms.heat_map import LatencyHeatMap
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.interval_log.interval_log import Interval
from streaminfer.telemetry.objectives.slo import SLO
from streaminfer.telemetry.statistics import TelemetryStatistics
from streaminfer.testing import FakeClock

DEVICE = ServiceTime.affine(0.004, 0.00025)
COUNTS = {"empty": 0, "one": 1, "thousand": 1000, "million": 1_000_000}


def new_axes(height_in=3.2):
    return Figure(figsize=(7.2, height_in), layout="constrained").subplots()


def latencies(count):
    return np.random.default_rng(5).lognormal(-4, 1, count)


def histogram(count):
    recorded = LatencyHistogram()
    recorded.record_many(latencies(count))
    return recorded


def traffic(count, load=0.6):
    """Return Poisson arrivals at a multiple of the rate that the device completes with batches of 32."""
    return arrivals.poisson(load * 32 / 0.012, count, 3) if count else np.empty(0)


def result(count, load=0.6, workers=2):
    return simulate(traffic(count, load), slo_s=0.05, service_time=DEVICE, max_batch_size=32, workers=workers)


def many_batches():
    """Return the result of a million requests in batches of four, on two workers in turn."""
    arrivals_s, starts_s = np.arange(1e6) / 1000, np.arange(250_000) * 0.004
    return SimulationResult(
        on_time=990_000, dropped=10_000, late=0, arrivals_s=arrivals_s, latencies_s=latencies(10**6), workers=2,
        is_on_time=np.ones(10**6, bool), drops_s=arrivals_s[::100], batch_sizes=np.full(250_000, 4),
        batch_starts_s=starts_s, batch_ends_s=starts_s + np.linspace(0.004, 0.008, 250_000),
        batch_workers=np.arange(250_000) % 2, reasons=("full", "full", "planned") * 83_333 + ("probe",),
    )  # fmt: skip


def log(count):
    ring = EventRing()
    for at in range(count):
        at_ns = at * 5_000_000
        ring.arrived(at_ns, 50_000_000, 0)
        record = ring.released(at_ns, 1 + at % 3, ("full", "planned", "probe", "mine<b>")[at % 4], 0)
        if at % 3 == 0:
            ring.dropped(at_ns, "infeasible", 2)
        if at % 97 or count > 10_000:
            ring.finished(record, at_ns + 9_000_000, at % 7 > 0)
    return DecisionLog.of(ring)


def slo(hours, share_bad):
    class Clock:
        now = 0

        def __call__(self):
            return self.now

    clock = Clock()
    objective = SLO("faces within 50 ms", threshold_s=0.05, clock=clock)
    for _ in range(hours):
        for number in range(20):
            objective.record(1.0 if number < 20 * share_bad else 0.01)
        clock.now += 3600 * 10**9
    return objective


def counted(events, first_bad):
    """Return an objective with an event per second, all bad from the number ``first_bad`` on."""
    clock = FakeClock()
    objective = SLO("faces within 50 ms", threshold_s=0.05, clock=clock)
    for number in range(events):
        clock.advance(1.0)
        objective.record(1.0 if number >= first_bad else 0.01)
    return objective


def dropping():
    """Return a log in which one of a hundred requests gets into a batch."""
    ring = EventRing()
    for at in range(2000):
        at_ns = at * 1_000_000
        ring.arrived(at_ns, 50_000_000, 0)
        if at % 100:
            ring.dropped(at_ns, ("infeasible", "queue_full")[at % 2], 1)
        else:
            ring.finished(ring.released(at_ns, 1, "planned", 0), at_ns + 90_000_000, False)
    return DecisionLog.of(ring)


def telemetry(count):
    parts = {name: histogram(count) for name in ("latency", "queue", "assembly", "inference", "delivery")}
    return TelemetryStatistics(name="faces", in_flight=0, outcomes={"ok": count}, batch_sizes={}, **parts)


def cost(models, idle_ns):
    rows = {
        f"a model with a rather long name, {number}": CostRow(
            cost=4.0 * number, setup=1.5 * number, padding=0.3 * number, on_time=number, responses=number
        )
        for number in range(models)
    }
    device = DeviceCost(
        per_second=1e9, workers=1, bill_ns=idle_ns, busy_ns=0, padding_ns=0, idle_ns=idle_ns, running_ns=0
    )
    return CostStatistics(
        name="faces", currency="EUR", devices={"gpu": device}, models=rows, routes={}, tenants={}, streams={},
        total=CostRow(), failed=0, overflowed=0,
    )  # fmt: skip


def paid(responses, on_time):
    """Return the bill of a month for a number of responses."""
    bill_ns = 30 * 86400 * 10**9
    row = CostRow(cost=900.0, setup=700.0, padding=90.0, rows=responses, responses=responses, on_time=on_time)
    device = DeviceCost(
        per_second=0.001, workers=1, bill_ns=bill_ns, busy_ns=bill_ns, padding_ns=0, idle_ns=0, running_ns=0
    )
    return CostStatistics(
        name="faces", currency="EUR", devices={"gpu": device}, models={"faces": row}, routes={"faces": row},
        tenants={str(number): row for number in range(256)}, streams={}, total=row, failed=10**6, overflowed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("models", "last"), [(3, "10 EUR"), (40, "2,000 EUR")])
def test_money_axis_has_no_kilo_prefix(models, last):
    axes = new_axes()
    cost(models, 7).plot(axes)
    axes.figure.canvas.draw()
    assert last in [text.get_text() for text in axes.get_xticklabels()]


def test_cost_plot_adds_up_to_the_bill():
    """The bars of models and idle time add up to the bill, and the smallest models share one bar."""
    axes = new_axes()
    cost(40, 7).plot(axes)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) == 12
    assert labels[-2:] == ["30 others", "idle"]
    assert axes.get_xlim()[1] > max(bar.get_x() + bar.get_width() for bar in axes.patches)
    widths = sum(bar.get_width() for bar in axes.patches)
    assert widths == pytest.approx(sum(4.3 * number for number in range(40)) + 7)


def table(trace=None, **settings):
    given = {"service_time": DEVICE, "max_batch_size": 32, "slo_s": 0.05} | settings
    return what_if(trace or Trace(traffic(300, 2.0)), **given)


def learned():
    service_time = LearnedServiceTime()
    for number, noise in enumerate(np.random.default_rng(3).lognormal(0.0, 0.3, 400).tolist()):
        size = 1 + number % 32
        service_time.observe(size, round((4e6 + 25e4 * size) * noise), number * 10**7)
    return service_time


def overloaded(count):
    """Return ten minutes in which every third request gets no response, and the rest wait longer and longer."""
    at_s = np.linspace(0.0, 600.0, count)
    latencies_s = np.minimum(0.01 + at_s**1.3 / 3.0, 600.0)
    latencies_s[::3] = np.nan
    return LatencyHeatMap.of_requests(at_s, latencies_s)


def clamped():
    """Return a histogram of which a third of the requests took longer than it can hold."""
    recorded = histogram(1000)
    recorded.record_many(np.full(500, 9000.0))
    return recorded


PICTURES = {
    **{f"percentiles, {name}": lambda count=count: histogram(count) for name, count in COUNTS.items()},
    "percentiles, overload": clamped,
    **{
        f"heat map, {name}": lambda count=count: LatencyHeatMap.of_requests(np.linspace(0, 60, count), latencies(count))
        for name, count in COUNTS.items()
    },
    "heat map, overload": lambda: overloaded(200_000),
    "heat map, without responses": lambda: LatencyHeatMap.of_requests(np.arange(9.0), np.full(9, np.nan)),
    "heat map, intervals": lambda: LatencyHeatMap.of_intervals(
        [Interval(at, at + 1.0, "", histogram(at % 400)) for at in range(500)]
    ),
    **{
        f"heat map, log since {start_s:g}": lambda start_s=start_s: LatencyHeatMap.of_intervals(
            [Interval(at, at + 3600.0, "", histogram(400)) for at in start_s + 3600.0 * np.arange(72)]
        )
        for start_s in (1e5, 1.7642e9, 1e12)
    },
    "heat map, request of today": lambda: LatencyHeatMap.of_requests([1.7642e9], [0.02]),
    "heat map, one interval": lambda: LatencyHeatMap.of_intervals([Interval(1.0, 2.0, "", histogram(1))]),
    "heat map, no interval": lambda: LatencyHeatMap.of_intervals([]),
    **{f"parts, {name}": lambda count=count: telemetry(count) for name, count in COUNTS.items()},
    "parts, overload": lambda: attrs.evolve(telemetry(1000), latency=clamped(), queue=clamped()),
    **{f"timeline, {name}": lambda count=count: result(count) for name, count in COUNTS.items() if count < 10**6},
    "timeline, million": many_batches,
    "timeline, overload": lambda: result(20_000, 4.0),
    "timeline, 300 workers": lambda: result(20_000, 40.0, 300),
    **{f"decision log, {count}": lambda count=count: log(count) for count in (0, 1, 20, 3000, 1_000_000)},
    "decision log, overload": dropping,
    "budget, empty": lambda: slo(0, 0.0),
    "budget, one hour": lambda: slo(1, 0.0),
    "budget, months": lambda: slo(800, 0.01),
    "budget, overload": lambda: slo(200, 0.5),
    "budget, one": lambda: counted(1, 1),
    "budget, one bad": lambda: counted(1, 0),
    "budget, million": lambda: counted(1_000_000, 995_000),
    "budget, overload at the end": lambda: counted(10_000, 9_500),
    "what if, one": table,
    "what if, empty": lambda: what_if(
        Trace(np.empty(0)), service_time=DEVICE, max_batch_size=[1, 4, 8], slo_s=0.05
    ),
    "what if, overload": lambda: what_if(
        Trace(traffic(300, 50.0)), service_time=DEVICE, max_batch_size=[1, 4, 8], slo_s=0.005
    ),
    "what if, hundred thousand": lambda: table(
        trace=Trace(traffic(100_000)), max_batch_size=[16, 32], policy="greedy", workers=2
    ),
    "what if, lines": lambda: table(max_batch_size=[1, 4, 8, 16, 32], policy=["greedy", "lookahead"], slo_s=[0.02, 0.05]),
    "what if, hundred": lambda: table(
        max_batch_size=[1, 2, 4, 8, 16], policy=["greedy", "lookahead"], workers=[1, 2, 3, 4], slo_s=[0.02, 0.05, 0.1]
    ),
    "cost, empty": lambda: cost(0, 0),
    "cost, one": lambda: cost(2, 3),
    "cost, hundred": lambda: cost(100, 400),
    "cost, million": lambda: paid(1_000_000, 990_000),
    "cost, overload": lambda: paid(1_000, 0),
    "cost, long names": lambda: attrs.evolve(
        cost(3, 4), models={f"models/a/b$c$/{'long' * 30}/v{n}": row for n, row in enumerate(cost(3, 4).models.values())}
    ),
    "budget, long name": lambda: SLO(f"a $x^2$ {'long ' * 30}", threshold_s=0.05, clock=FakeClock()),
    "service time": lambda: DEVICE,
    "service time, learned": learned,
}  # fmt: skip


@functools.cache
def drawn_from(picture):
    """Return the object that a picture shows, made once."""
    return PICTURES[picture]()


@pytest.mark.parametrize("picture", PICTURES)
def test_picture_could_be_printed(picture):
    """No text overlaps another or sticks out, no legend covers data, and the file is small."""
    drawn = drawn_from(picture)
    axes = new_axes(4.0 if "what if" in picture else 3.2)
    assert drawn.plot(axes) is axes
    check_printable(axes)


@pytest.mark.parametrize(
    ("start_s", "hours", "ticks", "label"),
    [
        (1.7642e9, 1, ["0", "10", "20", "30", "40", "50", "60"], "minutes since 2025-11-26 23:33:20 UTC"),
        (1.7642e9, 72, ["0", "0.5", "1", "1.5", "2", "2.5", "3"], "days since 2025-11-26 23:33:20 UTC"),
        (0.0, 6, ["0", "1", "2", "3", "4", "5", "6"], "time, hours"),
    ],
)
def test_heat_map_time_has_readable_units(start_s, hours, ticks, label):
    """A heat map shows seconds since the epoch as time since the first instant, which the label names."""
    axes = new_axes()
    LatencyHeatMap.of_requests(start_s + np.linspace(0.0, 3600.0 * hours, 200), latencies(200)).plot(axes)
    axes.figure.canvas.draw()

    assert [text.get_text() for text in axes.get_xticklabels()] == ticks
    assert axes.get_xlabel() == label
    assert axes.get_xlim() == (start_s, start_s + 3600.0 * hours)


def test_running_batch_reaches_the_end_of_the_picture():
    """A running batch has a bar up to the end of the picture, even if the log has only one instant."""
    axes = new_axes()
    log(1).plot(axes)
    bars, *_ = axes.collections
    (bar,) = (path.get_extents() for path in bars.get_paths())
    assert (bar.x0, bar.x1) == axes.get_xlim()


def test_empty_picture_has_an_explanation():
    """A picture without data has a text, so that a reader can tell missing data from a good result."""
    for name in PICTURES:
        if name.endswith((", empty", ", 0", ", without responses", ", no interval")):
            axes = new_axes()
            drawn_from(name).plot(axes)
            assert any(text.get_text() for text in axes.texts), name


@pytest.mark.parametrize("picture", PICTURES)
def test_html_is_bounded(picture):
    """The HTML of an object has less than 500,000 characters, and a picture if there is something to draw."""
    html = drawn_from(picture)._repr_html_()
    assert "<svg " in html or picture in {"percentiles, empty", "parts, empty", "cost, empty"}
    assert len(html) < 500_000


@pytest.mark.parametrize(
    "picture",
    [
        *("timeline, million", "decision log, 20", "budget, overload", "what if, hundred"),
        *("percentiles, million", "parts, million", "cost, one"),
    ],
)
def test_html_has_the_picture_and_the_figures(picture):
    html = drawn_from(picture)._repr_html_()
    assert html.startswith('<svg role="img" aria-label="')
    assert html.count("<svg ") == 1
    assert html.count("<table>") == (2 if picture == "cost, one" else 1)
    assert "mine<b>" not in html
    assert len(html) < 500_000


@pytest.mark.parametrize(
    "picture",
    [
        *("timeline, one", "percentiles, one", "heat map, one", "parts, one", "cost, one", "budget, one hour"),
        *("what if, one", "decision log, 1"),
    ],
)
def test_html_without_matplotlib_has_the_figures(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert drawn_from(picture)._repr_html_().startswith("<table>")


def test_empty_service_time_is_shown_as_text():
    assert LearnedServiceTime()._repr_html_() == "<p>LearnedServiceTime(observations=0)</p>"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("faces", "faces"),
        ("x" * 32, "x" * 32),
        ("model/" * 9 + "v2", "model/model/mode…/model/model/v2"),
        ("a$b$", r"a\$b\$"),
    ],
)
def test_names_of_users_are_short_and_no_formulas(name, shown):
    assert figures.shown_name(name) == shown


def test_many_labels_take_several_rows():
    axes = new_axes()
    for number in range(9):
        axes.plot([0, 1], [0, number], label=f"a line with a longer label, number {number}")
    figures.legend_above(axes)
    check_printable(axes)
