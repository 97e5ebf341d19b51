"""Report as one self-contained HTML page with inline pictures, for light and dark color schemes and for phones."""

import os
import time
from collections.abc import Sequence
from functools import partial
from html import escape

import attrs

from streaminfer._internal.display.html_report import write_page
from streaminfer._internal.display.html_table import html_table
from streaminfer.loadtest.quantiles import say_latency, say_share
from streaminfer.loadtest.report import plots
from streaminfer.loadtest.report.drawing import STYLE_SHEET, draw
from streaminfer.loadtest.report.report import TAILS, Report, Tail
from streaminfer.loadtest.report.sentences import describe, say_headline
from streaminfer.loadtest.verdict.verdict import Verdict

__all__ = ["make_page", "make_summary"]

CPU = "_cpu_s"
"""Suffix of the names of values that are CPU seconds."""
_MOST_DRAWN = 60
"""Most rows of a picture: thousands of rows, such as file names, take minutes to draw and do not fit on a page."""


def make_page(report: Report, verdict: Verdict | None = None, path: str | os.PathLike[str] | None = None) -> str:
    """Return the page as HTML; with a path, also write it there.

    Args:
        report: the report to show.
        verdict: verdict of a comparison, shown first; ``None``: no comparison.
        path: file to write; ``None``: no file.

    Raises:
        OSError: the file cannot be written.
    """
    title = f"Load test{f' {report.name}' if report.name else ''}"
    comparison = () if verdict is None else (str(verdict),)
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in (*comparison, *describe(report)[1:]))
    sections = [
        _section(
            "Latency by percentile", draw(partial(plots.plot_percentiles, report=report), "latency by percentile")
        ),
        _section("Latency over time", draw(partial(plots.plot_over_time, report=report), "latency over time")),
        *(_tails(f"By {label}", tails) for label in report.record.labels if (tails := report.by_label(label))),
    ]
    if report.capacity is not None and report.capacity.steps:
        plot = partial(plots.plot_capacity, capacity=report.capacity)
        sections.insert(0, _section("Capacity", draw(plot, str(report.capacity))))
    if stages := report.by_stage():
        sections.append(_tails("By stage", stages))
        sections += [_stages(report, label) for label in report.record.labels]
    if report.record.values:
        sections += [_means(report, label) for label in report.record.labels]
    sections.append(_section("Outcomes", html_table(((name, f"{count:,}") for name, count in report.outcomes.items()))))
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.began))
    body = (
        f'<h1>{escape(title)}</h1><p class="headline">{escape(say_headline(report))}</p>{paragraphs}'
        f"{_table([report.total])}{''.join(sections)}"
        f"<footer><p>{escape(report.arrivals)}, {report.duration_s:g} s, seed {report.seed}; {escape(report.machine)}; "
        f"{began}</p></footer>"
    )
    return write_page(title, body, path, style_sheet=STYLE_SHEET)


def make_summary(report: Report) -> str:
    """Return headline, sentences and table, for a notebook."""
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in describe(report))
    tails = [tail for label in report.record.labels for tail in report.by_label(label)]
    return f"<div>{paragraphs}{_table([report.total, *tails])}</div>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _tails(title: str, tails: Sequence[Tail]) -> str:
    plot = partial(plots.plot_tails, tails=tails)
    picture = draw(plot, title, height_in=1.2 + 0.3 * len(tails)) if len(tails) <= _MOST_DRAWN else ""
    return _section(title, picture + _table(tails))


def _stages(report: Report, label: str) -> str:
    """Return a table of the stages for each value of a label; empty if the label has one value only."""
    values = [tail.name for tail in report.by_label(label)]
    tails = [
        attrs.evolve(tail, name=f"{value}: {tail.name}") for value in values for tail in report.by_stage(label, value)
    ]
    return _section(f"Stages by {label}", _table(tails)) if len(values) > 1 and tails else ""


def _table(tails: Sequence[Tail]) -> str:
    timed = any(tail.on_time is not None for tail in tails)  # stages have no SLO
    rows = [
        (
            tail.name,
            f"{tail.count:,}",
            *(("" if tail.on_time is None else say_share(tail.on_time),) if timed else ()),
            *(say_latency(seconds) for seconds in tail.quantiles_s.values()),
        )
        for tail in tails
    ]
    head = ("", "requests", *(("on time",) if timed else ()), *TAILS)
    return f'<div class="scroll">{html_table(rows, head=head)}</div>'


def _means(report: Report, label: str) -> str:
    means = report.means(label)
    names = list(report.record.values)
    rows = [
        (value, *(_say_mean(name, row[name]) if name in row else "" for name in names)) for value, row in means.items()
    ]
    head = (label, *(f"CPU of {name.removesuffix(CPU)}" if name.endswith(CPU) else name for name in names))
    return _section(f"Measured by {label}", f'<div class="scroll">{html_table(rows, head=head)}</div>')


def _say_mean(name: str, mean: float) -> str:
    return say_latency(mean) if name.endswith(CPU) else f"{mean:,.4g}" if mean < 10_000 else f"{mean:,.0f}"
