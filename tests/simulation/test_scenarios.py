"""`what_if`: each row equals `simulate`, every combination has one row, and tables have text, HTML and plots."""

import io
import math
import sys

import matplotlib as mpl
import numpy as np
import pytest

from streaminfer.batching.policy import Greedy
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.errors import MissingExtra
from streaminfer.simulation import arrivals
from streaminfer.simulation import scenarios as module
from streaminfer.simulation.scenarios import what_if
from streaminfer.simulation.simulator import simulate
from streaminfer.simulation.trace import Trace

pytestmark = pytest.mark.uncompiled

DEVICE = ServiceTime.affine(0.005, 0.001)
FAST = ServiceTime.affine(0.002, 0.0005)
rng = np.random.default_rng(3)
TRACE = Trace(arrivals.gamma(600, 400, 1), rng.choice([0.02, 0.05, np.nan], 400), rng.integers(0, 2, 400))


def asked(**changes):
    return what_if(TRACE, **({"service_time": DEVICE, "max_batch_size": 16, "policy": "greedy"} | changes))


def rows(table, *names):
    return [tuple(getattr(outcome, name) for name in names) for outcome in table]


@pytest.mark.parametrize("policy", ["greedy", "lookahead"])
def test_scenario_row_equals_simulate(policy):
    (outcome,) = asked(policy=policy, workers=2)
    result = simulate(
        TRACE.arrivals_s, slo_s=1, service_time=DEVICE, max_batch_size=16, policy=policy, workers=2,
        deadlines_s=TRACE.deadlines_s, priorities=TRACE.priorities,
    )  # fmt: skip
    assert result.late or result.dropped
    assert (outcome.on_time, outcome.dropped, outcome.late) == (result.on_time, result.dropped, result.late)
    answered = result.latencies_s[~np.isnan(result.latencies_s)]
    assert outcome.p50_s == np.quantile(answered, 0.5)
    assert outcome.p99_s == np.quantile(answered, 0.99)
    assert outcome.mean_batch_size == answered.size / result.batch_sizes.size
    busy = sum(end - start for start, end in zip(result.batch_starts_s, result.batch_ends_s, strict=True))
    assert outcome.utilization == pytest.approx(busy / 2 / result.batch_ends_s.max())
    assert outcome.share_on_time == result.share_on_time
    assert outcome.share_on_time + outcome.share_dropped + outcome.share_late == pytest.approx(1)


def test_a_slo_replaces_the_recorded_limits():
    table = asked(slo_s=[0.03, None])
    result = simulate(
        TRACE.arrivals_s,
        slo_s=0.03,
        service_time=DEVICE,
        max_batch_size=16,
        policy="greedy",
        priorities=TRACE.priorities,
    )
    assert table[0].on_time == result.on_time
    assert table[1].on_time == asked()[0].on_time != table[0].on_time


def test_noise_gives_the_result_of_simulate():
    (outcome,) = asked(noise=0.6, seed=4)
    result = simulate(
        TRACE.arrivals_s, slo_s=1, service_time=DEVICE, max_batch_size=16, policy="greedy", noise=0.6, seed=4,
        deadlines_s=TRACE.deadlines_s, priorities=TRACE.priorities,
    )  # fmt: skip
    assert outcome.on_time == result.on_time != asked()[0].on_time


def test_every_combination_once_and_in_order():
    table = asked(max_batch_size=[4, 8], slo_s=(0.05, 0.02), workers=np.array([1, 2]))
    assert rows(table, "max_batch_size", "slo_s", "workers") == [
        (cap, slo, workers) for cap in (4, 8) for slo in (0.05, 0.02) for workers in (1, 2)
    ]
    assert len(table) == 8
    assert table[-1] is table.outcomes[7]
    assert len(asked(max_batch_size=[4, 4])) == 1


def test_only_greedy_has_a_delay():
    table = asked(policy=["greedy", "lookahead"], max_queue_delay_s=[0.0, 0.005])
    assert rows(table, "policy", "max_queue_delay_s") == [("greedy", 0.0), ("greedy", 0.005), ("lookahead", 0.0)]
    assert rows(asked(policy="lookahead", max_queue_delay_s=0.005), "max_queue_delay_s") == [(0.0,)]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (DEVICE, [repr(DEVICE)]),
        ({"a": DEVICE, "b": FAST}, ["a", "b"]),
        ([("a", DEVICE), FAST], ["a", repr(FAST)]),
        ([DEVICE, DEVICE], [repr(DEVICE)]),
    ],
)
def test_devices_have_names(given, names):
    table = asked(service_time=given)
    assert rows(table, "service_time") == [(name,) for name in names]
    assert list(table.devices) == names


def test_best_row_is_by_on_time_workers_then_p99():
    """The best row has the most requests on time, then the fewest workers, then the lowest p99."""
    table = asked(slo_s=[0.02, 0.05], service_time={"slow": DEVICE, "fast": FAST}, workers=[2, 1, 9, 8])
    best = table.best()
    assert best.on_time == max(outcome.on_time for outcome in table) == 400
    assert best.workers == min(outcome.workers for outcome in table if outcome.on_time == 400)
    peers = [it for it in table if (it.on_time, it.workers) == (best.on_time, best.workers)]
    assert best.p99_s == min(outcome.p99_s for outcome in peers)
    nothing = what_if(Trace([0.0], [1e-9]), service_time=DEVICE, max_batch_size=[1, 2])
    assert nothing.best().on_time == 0


def test_best_of_equal_policies_is_lookahead():
    """If a trace is easy for both policies, the best is `lookahead` in any order: the next trace may be harder."""
    calm = Trace(np.arange(20) * 0.1, limits_s=[0.05] * 20)

    for policies in (["greedy", "lookahead"], ["lookahead", "greedy"]):
        table = what_if(calm, service_time=DEVICE, max_batch_size=8, policy=policies)

        assert len({(it.on_time, it.p99_s) for it in table}) == 1
        assert table.best().policy == "lookahead"


def test_a_row_can_be_replayed():
    table = asked(slo_s=[None, 0.05], workers=[1, 2], noise=0.2)
    for outcome in table:
        result = table.replay(outcome)
        assert (result.on_time, result.dropped, result.late) == (outcome.on_time, outcome.dropped, outcome.late)
        assert result.workers == outcome.workers
    with pytest.raises(ValueError, match="outcome: expected one of these"):
        table.replay(asked(max_batch_size=2)[0])


def test_equal_alternatives_are_one_scenario():
    """Alternatives that are equal, as numbers or as objects, are simulated once."""
    devices = [DEVICE, ServiceTime.from_dict(DEVICE.to_dict())]

    assert len(what_if(Trace([0.0], [0.1]), service_time=devices, max_batch_size=[2, 2])) == 1


def test_an_empty_trace():
    (outcome,) = table = what_if(Trace(np.empty(0)), service_time=DEVICE, max_batch_size=2)
    assert (outcome.on_time, outcome.dropped, outcome.late) == (0, 0, 0)
    assert (outcome.share_on_time, outcome.share_dropped, outcome.utilization) == (1.0, 0.0, 0.0)
    assert math.isnan(outcome.p99_s)
    assert math.isnan(outcome.mean_batch_size)
    assert "0 requests" in repr(table)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trace": [0.0, 1.0]}, TypeError, "trace: expected a Trace"),
        ({"service_time": 3}, TypeError, r"service_time: .*fitted\(\)"),
        ({"service_time": "fast"}, TypeError, "service_time: "),
        ({"service_time": {"a": 3}}, TypeError, "service_time: "),
        ({"service_time": [("a", DEVICE, 3)]}, TypeError, "service_time: "),
        ({"service_time": {3: DEVICE}}, TypeError, "service_time: "),
        ({"service_time": {}}, ValueError, "service_time: expected at least one"),
        ({"service_time": [("a", DEVICE), ("a", FAST)]}, ValueError, "service_time: expected a name of its own"),
        ({"policy": "best"}, ValueError, "policy"),
        ({"policy": Greedy(4)}, TypeError, "policy: expected one of 'lookahead', 'greedy', got "),
        ({"policy": []}, ValueError, "policy: expected at least one alternative"),
        ({"slo_s": 0}, ValueError, "slo_s"),
        ({"slo_s": [0.05, "x"]}, TypeError, "slo_s"),
        ({"workers": [1, 0]}, ValueError, "workers"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size"),
        ({"noise": -1}, ValueError, "noise"),
        ({"progress": 3}, TypeError, "progress: expected a function of two numbers or None, got 3"),
    ],
)
def test_invalid_arguments_raise(changes, error, message):
    arguments = {"trace": TRACE, "service_time": DEVICE, "max_batch_size": 4, "policy": "greedy"} | changes
    with pytest.raises(error, match=message):
        what_if(arguments.pop("trace"), **arguments)


def test_repr_has_columns_for_what_varies():
    """The printed table has a column for each setting that varies; the title names the others."""
    table = asked(slo_s=[None, 0.05], workers=[1, 2])
    title, head, *lines = repr(table).splitlines()
    assert title.startswith(f"400 requests in {TRACE.duration_s:.4g} s, {TRACE.rate:.4g} a second; service_time=")
    assert title.endswith("max_batch_size=16, policy=greedy")
    assert head.split() == ["slo_s", "workers", "on", "time", "dropped", "late", "p50", "p99", "mean", "batch", "busy"]
    assert len(lines) == 4
    assert len({len(line) for line in (head, *lines)}) == 1
    first = table[0]
    assert lines[0].split() == [
        "as", "recorded", "1", f"{first.share_on_time:.1%}", f"{first.share_dropped:.1%}", f"{first.share_late:.1%}",
        f"{first.p50_s * 1e3:.1f}", "ms", f"{first.p99_s * 1e3:.1f}", "ms", f"{first.mean_batch_size:.1f}",
        f"{first.utilization:.0%}",
    ]  # fmt: skip
    assert lines[2].split()[:2] == ["0.05", "1"]
    assert "max_queue_delay_s=0.005" in repr(asked(policy="greedy", max_queue_delay_s=0.005))


def test_html_escapes():
    html = asked(service_time={"<i>": DEVICE, "b": FAST})._repr_html_()
    assert "&lt;i&gt;" in html
    assert "<i>" not in html
    assert html.count("<tr>") == 3
    assert html.count("<th>") == 8


@pytest.fixture
def axes():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_plot_along_slo_has_line_per_other_setting(axes):
    """A plot along the SLO has a line for each combination of the other settings."""
    table = asked(slo_s=[0.05, 0.02], workers=[1, 2])
    assert table.plot(axes) is axes
    lines = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines}
    share = {(outcome.slo_s, outcome.workers): outcome.share_on_time for outcome in table}
    assert lines == {f"workers={n}": ([0.02, 0.05], [share[0.02, n], share[0.05, n]]) for n in (1, 2)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["workers=1", "workers=2"]
    assert axes.get_xlabel() == "SLO, s"
    assert axes.get_ylabel() == "on time"


def test_plot_along_other_number_if_slo_is_recorded(axes):
    """If one SLO is as recorded, the plot runs along another number."""
    asked(slo_s=[None, 0.02], max_batch_size=[4, 8]).plot(axes)
    assert axes.get_xlabel() == "largest batch"
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert [line.get_label() for line in axes.lines] == ["slo_s=as recorded", "slo_s=0.02"]


def test_plot_of_one_line_has_no_legend(axes):
    asked(workers=[1, 2, 3]).plot(axes)
    assert axes.get_legend() is None
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]


def test_plot_of_bars_where_no_number_differs(axes):
    table = asked(service_time={"a": DEVICE, "b": FAST})
    table.plot(axes)
    best = sorted(table, key=lambda outcome: -outcome.on_time)
    shares = [getattr(it, name) for name in ("share_on_time", "share_late", "share_dropped") for it in best]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares)
    names = [f"service_time={outcome.service_time}" for outcome in best]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert axes.get_xlabel() == "requests"
    own = asked().plot()
    assert own is not axes
    assert [text.get_text() for text in own.get_yticklabels()] == ["as given"]


def test_plot_along_the_number_with_most_values(axes):
    asked(workers=[1, 2], max_batch_size=[2, 4, 8]).plot(axes)
    assert axes.get_xlabel() == "largest batch"
    assert len(axes.lines) == 2


def test_plot_of_many_combinations_has_best_as_bars(axes):
    """A plot of many combinations shows the best of them as bars."""
    table = asked(workers=[1, 2, 3, 4], max_batch_size=[2, 4, 8, 16], slo_s=[0.02, 0.05])
    table.plot(axes)
    assert len(axes.patches) == 3 * 20
    assert axes.get_yticklabels()[0].get_text().endswith(f"workers={table.best().workers}")
    assert axes.get_xlabel() == "requests; the best 20 of 32"


def test_plot_of_many_settings_leaves_room_for_bars(axes):
    """The axis has names of settings once, a device without a name has its number, and drawing raises no warning."""
    measured = ServiceTime.table({size: 0.001 + 0.000123456 * size for size in range(1, 17)})
    table = asked(
        service_time=[DEVICE, measured],
        max_batch_size=[1, 8],
        slo_s=[None, 0.03],
        workers=[1, 2],
        max_queue_delay_s=[0, 0.005],
    )
    assert "<svg" in table._repr_html_()  # lays the picture out in the size of a notebook's
    table.plot(axes)
    names = "service_time, max_batch_size, slo_s, workers, max_queue_delay_s"
    assert axes.get_ylabel().replace("\n", " ") == names
    best = table.best()
    device = "2: <ServiceTime…35 an item>"
    assert axes.get_yticklabels()[0].get_text() == f"{device}, {best.max_batch_size}, as recorded, {best.workers}, 0"


def test_plot_of_lines_shortens_long_names(axes):
    """The legend shortens a long name, and does not read a formula in a name."""
    asked(service_time={"a" * 200: DEVICE, "$b$": FAST}, workers=[1, 2, 3]).plot(axes)
    long, formula = (text.get_text() for text in axes.get_legend().get_texts())
    assert len(long) == 88
    assert formula == r"service_time=\$b\$"


@pytest.mark.parametrize("slo_s", [0.03, [None, 0.03]])
def test_plot_of_bars_reads_no_formula_in_names(axes, slo_s):
    """Names that matplotlib cannot draw as a formula, or at all, are drawn as text, beside few and many settings."""
    devices = {r"$\frac$": DEVICE, "\ud800": FAST}
    table = asked(service_time=devices, policy=["greedy", "lookahead"], slo_s=slo_s)
    assert "<svg" in table._repr_html_()
    table.plot(axes)
    names = " ".join(tick.get_text() for tick in axes.get_yticklabels())
    assert r"\$\frac\$" in names
    assert r"\ud800" in names


def test_plot_without_matplotlib_names_extra(monkeypatch):
    """Without matplotlib, `plot` says how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(MissingExtra, match=r"ScenarioTable.plot needs .*pip install 'streaminfer\[plot\]'"):
        asked().plot()


# -- progress -------------------------------------------------------------------------------------------------------


def test_progress_callback_is_called_per_scenario():
    told = []
    asked(workers=[1, 2, 3], progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that is 0.4 s later at each reading."""
    looks = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(looks) * 0.4)


def test_terminal_is_told_after_one_second(monkeypatch, clock):
    """A terminal shows the progress of a run that takes longer than a second."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    asked(workers=[1, 2, 3, 4])
    assert sys.stderr.getvalue() == "\rwhat_if: 2 of 4\rwhat_if: 3 of 4\rwhat_if: 4 of 4\n"


def test_quick_run_shows_no_progress_on_a_terminal(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", Terminal())
    asked()
    assert sys.stderr.getvalue() == ""


def test_progress_is_shown_in_notebooks_not_log_files(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    asked(workers=[1, 2, 3, 4])
    assert sys.stderr.getvalue() == ""
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    asked(workers=[1, 2, 3, 4])
    assert sys.stderr.getvalue().endswith("what_if: 4 of 4\n")
