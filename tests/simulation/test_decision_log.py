"""The decision log: its copy of the events, its text and pictures, and its trace."""

import asyncio
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import streaminfer as si
from streaminfer.batching import ServiceTime
from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.errors import MissingExtra
from streaminfer.simulation.decision_log import DROP_REASONS, RELEASE_REASONS, DecisionLog
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


@pytest.fixture
def events():
    """Return events of two workers: three batches, of which one failed and one runs, and three drops.

    The clock has run for a year.
    """
    start = 10**9 * 86400 * 365
    events = EventRing()
    for at_ms, limit_ms, priority in [(0, 50, 0), (1, 0, 1), (4, 20, 0), (30, 50, 2)]:
        events.arrived(start + at_ms * MS, limit_ms * MS, priority)
    first = events.released(start, 1, "exploration", 0)
    second = events.released(start + 4 * MS, 2, "planned", 3)
    events.dropped(start + 5 * MS, "infeasible", 2)
    events.finished(first, start + 10 * MS, True)
    events.dropped(start + 20 * MS, "mine<b>")
    events.finished(second, start + 24 * MS, False)
    events.released(start + 30 * MS, 1, "idle_worker", 0)
    events.arrived(start + 40 * MS, 0, 0)
    return events


@pytest.fixture
def axes():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_only_full_queue_counts_as_drop():
    """A request that finds the queue full counts as an arrival and a drop; a failed or cancelled request is no drop."""

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=1)
        model = ScriptedBackend(OSError("gone"), duration_s=1.0)
        async with si.Stack(batcher, model, clock=loop.clock) as service:
            calls = []
            for _ in range(3):
                calls.append(asyncio.ensure_future(service(1.0)))
                await asyncio.sleep(0.1)
            calls[1].cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
        return [type(end) for end in ends], batcher.decision_log()

    ends, log = run(main)
    assert ends == [si.BackendError, asyncio.CancelledError, si.Overloaded]
    assert (log.arrivals_ns.size, log.arrival_batches.tolist()) == (3, [0, -1, -1])
    assert (log.dropped, log.drop_reasons) == ({"queue_full": 1}, ("queue_full",))


def test_decision_log_is_a_copy(events):
    log = DecisionLog.of(events)
    events.arrived(2**62, 0, 0)
    assert log.arrivals_ns.size == 5
    assert log.released == {"exploration": 1, "planned": 1, "idle_worker": 1}
    assert log.dropped == {"infeasible": 2, "mine<b>": 1}
    assert log.batch_workers.tolist() == [0, 1, 0]
    assert log.batch_ok.tolist() == [True, False, False]
    assert log.latest_ns == log.arrivals_ns[-1]
    with pytest.raises(AttributeError):
        log.reasons = ()


def test_decision_log_needs_an_event_ring():
    with pytest.raises(TypeError, match="events: expected an EventRing"):
        DecisionLog.of(3)


def test_explain_lists_batches_and_drops(events):
    """`explain` lists counts and a line for each batch and drop, with the reason in words."""
    text = DecisionLog.of(events).explain()
    assert text.splitlines() == [
        "3 batches: exploration 1, planned 1, idle_worker 1",
        "      -40.0 ms worker 0: 1 request, 0 left queued, took 10.0 ms. exploration: "
        + RELEASE_REASONS["exploration"],
        "      -36.0 ms worker 1: 2 requests, 3 left queued, no answers after 20.0 ms. planned: "
        + RELEASE_REASONS["planned"],
        "      -10.0 ms worker 0: 1 request, 0 left queued, still running. idle_worker: "
        + RELEASE_REASONS["idle_worker"],
        "3 requests dropped: infeasible 2, mine<b> 1",
        "      -35.0 ms 2 requests dropped. infeasible: " + DROP_REASONS["infeasible"],
        "      -20.0 ms 1 request dropped. mine<b>: a reason that the policy gave",
    ]


def test_explain_is_limited_to_the_latest(events):
    """`explain(n)` lists the latest n batches and drops only."""
    lines = DecisionLog.of(events).explain(1).splitlines()
    assert len(lines) == 4
    assert "idle_worker:" in lines[1]
    assert "mine<b>:" in lines[3]
    with pytest.raises(ValueError, match="latest: expected a whole number"):
        DecisionLog.of(events).explain(0)


def test_empty_log_explains_zero_batches_and_drops():
    log = DecisionLog.of(EventRing())
    assert log.explain() == "0 batches: none\n0 requests dropped: none"
    assert log.latest_ns == 0
    assert repr(log) == "<DecisionLog of the last 0 arrivals, 0 batches and 0 drops>"
    assert "<table>" in log._repr_html_()
    assert len(log.to_trace()) == 0


def test_html_counts_and_escapes(events):
    html = DecisionLog.of(events)._repr_html_()
    assert "mine&lt;b&gt;" in html
    assert "mine<b>" not in html
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in html.split("<tr>")[2:]]
    assert [row[:4] for row in rows] == [
        ["batches", "exploration", "1", "1.0"],
        ["batches", "planned", "1", "2.0"],
        ["batches", "idle_worker", "1", "1.0"],
        ["drops", "infeasible", "2", ""],
        ["drops", "mine&lt;b&gt;", "1", ""],
    ]
    assert repr(DecisionLog.of(events)) == "<DecisionLog of the last 5 arrivals, 3 batches and 3 drops>"


def test_html_of_a_reason_that_the_ring_has_forgotten():
    events = EventRing(1, 1)
    events.released(0, 1, "full", 0)
    events.released(1, 3, "planned", 0)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", DecisionLog.of(events)._repr_html_())
    assert cells[:4] == ["batches", "full", "1", ""]


def bars(axes):
    """Return the bars of each collection, by its label: left, right and row."""
    return {
        group.get_label(): [
            (path.vertices[:, 0].min(), path.vertices[:, 0].max(), path.vertices[:, 1].mean().round())
            for path in (path.__class__(path.vertices[:4]) for path in group.get_paths())
        ]
        for group in axes.collections
    }


def test_plot_draws_batches_arrivals_and_drops(events, axes):
    assert DecisionLog.of(events).plot(axes) is axes
    drawn = bars(axes)
    assert list(drawn) == ["exploration", "planned", "idle_worker", "failed", "still running"]
    assert drawn["exploration"] == [pytest.approx((0, 0.010, 0))]
    assert drawn["planned"] == drawn["failed"] == [pytest.approx((0.004, 0.024, 1))]
    assert drawn["idle_worker"] == drawn["still running"] == [pytest.approx((0.030, 0.040, 0))]
    ticks = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert ticks == {"arrivals": pytest.approx([0, 0.001, 0.004, 0.03, 0.04]), "drops": pytest.approx([0.005, 0.02])}
    assert [text.get_text() for text in axes.texts] == ["1", "2", "1"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["worker 0", "worker 1", "arrivals", "drops"]
    left, right = axes.get_xlim()
    assert left <= 0
    assert right >= 0.04
    bottom, top = axes.get_ylim()
    assert bottom <= -1.5
    assert top >= 1.4


def test_plot_of_the_last_seconds_only(events, axes):
    DecisionLog.of(events).plot(axes, last_s=0.018)
    assert list(bars(axes)) == ["planned", "idle_worker", "failed", "still running"]
    assert bars(axes)["planned"] == [pytest.approx((0, 0.020, 1))]
    ticks = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert ticks == {"arrivals": pytest.approx([0.026, 0.036]), "drops": []}
    assert [text.get_text() for text in axes.get_yticklabels()][:2] == ["worker 0", "worker 1"]
    with pytest.raises(ValueError, match="last_s"):
        DecisionLog.of(events).plot(axes, last_s=0)


def test_plot_of_more_seconds_than_there_are(events, axes):
    """A plot of the last seconds shows all if the log has fewer, however many seconds are wanted."""
    DecisionLog.of(events).plot(axes, last_s=1e300)

    assert list(bars(axes)) == ["exploration", "planned", "idle_worker", "failed", "still running"]


def test_a_reason_keeps_its_color(axes):
    for reasons in (("full", "planned"), ("planned", "mine", "full")):
        events = EventRing()
        for at, reason in enumerate(reasons):
            events.finished(events.released(at * MS, 1, reason, 0), (at + 1) * MS, True)
        DecisionLog.of(events).plot(axes)
    colors = [(group.get_label(), tuple(group.get_facecolor()[0])) for group in axes.collections]
    assert len(colors) == 5
    assert len(set(colors)) == 3
    assert len({color for _, color in colors}) == 3


def test_narrow_bars_carry_no_figures(axes):
    events = EventRing()
    for at in range(100):
        events.finished(events.released(at * MS, 7, "full", 0), (at + 1) * MS, True)
    record = events.released(100 * MS, 5, "full", 0)
    events.finished(record, 150 * MS, True)
    DecisionLog.of(events).plot(axes)
    assert [text.get_text() for text in axes.texts] == ["5"]
    assert len(axes.collections) == 1


def test_empty_timeline_makes_its_own_figure(axes):
    """The timeline of an empty log is drawn on a figure of its own."""
    own = DecisionLog.of(EventRing()).plot()
    assert own is not axes
    assert len(own.lines) == 2
    assert [text.get_text() for text in own.texts] == ["no requests yet"]


def test_plot_without_matplotlib_names_extra(events, monkeypatch):
    """Without matplotlib, `plot` says how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib.collections", None)
    with pytest.raises(MissingExtra, match=r"DecisionLog.plot needs .*pip install 'streaminfer\[plot\]'"):
        DecisionLog.of(events).plot()


def test_log_converts_to_a_trace(events):
    trace = DecisionLog.of(events).to_trace()
    assert trace.arrivals_s.tolist() == [0, 0.001, 0.004, 0.03, 0.04]
    assert trace.limits_s.tolist() == [0.05, np.inf, 0.02, 0.05, np.inf]
    assert trace.priorities.tolist() == [0, 1, 0, 2, 0]


def test_a_trace_keeps_nanoseconds_of_an_old_clock():
    events = EventRing()
    start = 10**9 * 86400 * 365
    for at_ns, limit_ns in [(0, 50_000_001), (3, 0), (10, 7)]:
        events.arrived(start + at_ns, limit_ns, 4)
    trace = DecisionLog.of(events).to_trace()
    assert trace.arrivals_s.tolist() == [0.0, 3e-9, 1e-8]
    assert trace.limits_s.tolist() == [0.050000001, np.inf, 7e-9]
    assert trace.priorities.tolist() == [4, 4, 4]


def test_a_trace_orders_arrivals_of_an_uneven_clock():
    events = EventRing()
    for at_ns, priority in [(10, 1), (5, 2), (20, 3)]:
        events.arrived(at_ns, 0, priority)
    trace = DecisionLog.of(events).to_trace()
    assert trace.arrivals_s.tolist() == [0.0, 5e-9, 15e-9]
    assert trace.priorities.tolist() == [2, 1, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_busy_batcher_has_a_row_for_each_worker(workers):
    """A batch that begins when another one ends has the row of that one's worker, as in a simulation."""
    arrivals_s = np.arange(40) * 0.0011
    device = ServiceTime.affine(0.004 * workers, 0.0005)

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, policy="greedy", max_in_flight=workers)
        async with si.Stack(batcher, ScriptedBackend(duration_s=device.seconds), clock=loop.clock) as service:
            calls = []
            for arrival_s in arrivals_s:
                await asyncio.sleep(arrival_s - loop.time())
                calls.append(asyncio.ensure_future(service(1.0)))
            await asyncio.gather(*calls)
        return batcher.decision_log()

    log = run(main)

    assert set(log.batch_workers.tolist()) == set(range(workers))
    simulated = si.simulate(
        arrivals_s, slo_s=1.0, service_time=device, max_batch_size=4, policy="greedy", workers=workers
    )
    assert log.batch_workers.tolist() == simulated.batch_workers.tolist()
    assert log.batch_sizes.tolist() == simulated.batch_sizes.tolist()
    assert log.batch_ok.all()


def test_docs_page_explains_every_reason():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "explaining.md").read_text(encoding="utf-8")
    for reason, words in (RELEASE_REASONS | DROP_REASONS).items():
        assert f"| `{reason}` | {words} |" in page
