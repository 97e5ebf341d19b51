"""The report as one HTML page with its figures inside, which loads nothing else."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape

import attrs
from matplotlib.figure import Figure

from demo import plots
from demo.drawing import Size, draw
from demo.overload_plot import make_overload_figure
from demo.report import STREAMS_HEAD, SWEEP_HEAD, Outcome, make_rows, make_sweep_rows
from demo.sentences import (
    Paragraph,
    describe_budgets,
    describe_cache,
    describe_faces,
    describe_holds,
    describe_overload,
    describe_speech,
    describe_sweep,
    say_headline,
    say_machine,
)
from demo.sweep_plot import make_sweep_figure

__all__ = ["make_page"]

UNITS = re.compile(r"(\d) (%|ms\b|s\b|µs\b|MiB\b|times\b|microphones\b|repeats\b|chunks a second\b)")
"""Numbers with units, which stay on one line."""

MakeFigure = Callable[[Size], Figure]


@attrs.frozen
class Section:
    """A figure, one line about it, and folded details below.

    Attributes:
        title: title of the section.
        paragraph: the line, and details.
        figure: makes the figure in either form.
        folded: further figures by title.
    """

    title: str
    paragraph: Paragraph
    figure: MakeFigure
    folded: dict[str, MakeFigure] = attrs.field(factory=dict)


def make_page(outcome: Outcome) -> str:
    """Return the whole page."""
    comparison, sweep = outcome.comparison, outcome.sweep
    described = describe_sweep(outcome)
    top = (
        f'<p class="headline">{_text(say_headline(comparison, sweep))}</p>'
        + draw(partial(make_sweep_figure, sweep, comparison), "chunks on time and p99 latency by offered load")
        + f"<p>{_text(described.line)}</p>"
        + _fold("How it was measured, and every load", described.details, _table(SWEEP_HEAD, make_sweep_rows(sweep)))
    )
    sections = "".join(_section(section) for section in make_sections(outcome))
    streams = _fold(
        "All streams in numbers",
        (
            (
                "Percentiles are over all requests that were due, from the instant at which they were. The CPU of a "
                "microphone's request is that of the whole process, sender and event loop included, but for the face "
                "detector's thread; that of a camera's is this thread's; that of a visitor's is the whole process's."
            ),
        ),
        _table(STREAMS_HEAD, make_rows(outcome)),
    )
    return (
        PAGE.replace("@top", top)
        .replace("@sections", sections + streams)
        .replace("@where", _text(say_machine(outcome)))
    )


def make_sections(outcome: Outcome) -> list[Section]:
    """Return all figures below the first one for which there is data."""
    holds = outcome.holds
    folded: dict[str, MakeFigure] = {}
    if (counted := holds[0].counted) is not None:
        folded["Where the time goes, batched: percentiles of each part"] = partial(
            plots.make_parts_figure, counted.voice
        )
        if counted.voice.batch_sizes:
            folded["Batch sizes"] = partial(plots.make_batch_size_figure, counted.voice)
    sections = [
        Section("Latency", describe_holds(outcome), partial(plots.make_latency_figure, holds), folded),
        Section("Speech", describe_speech(outcome), partial(plots.make_speech_figure, outcome.clip, outcome.speech)),
    ]
    if holds[0].faces:
        figure = partial(plots.make_faces_figure, outcome.frames, holds[0].faces)
        sections.insert(1, Section("Faces", describe_faces(outcome), figure))
    if outcome.overload is not None:
        figure = partial(make_overload_figure, outcome.overload)
        sections.append(Section("Overload", describe_overload(outcome.overload), figure))
    if outcome.visited is not None:
        figure = partial(plots.make_cache_figure, outcome.visited)
        sections.append(Section("Cache", describe_cache(outcome.visited), figure))
        budgets = partial(plots.make_budget_figure, outcome.budgets)
        sections.append(Section("Error budget", describe_budgets(outcome.budgets), budgets))
    return sections


def _section(section: Section) -> str:
    folded = "".join(f"<h3>{_text(title)}</h3>{draw(figure, title)}" for title, figure in section.folded.items())
    return (
        f"<section><h2>{_text(section.title)}</h2><p>{_text(section.paragraph.line)}</p>"
        f"{draw(section.figure, section.title)}{_fold('Details', section.paragraph.details, folded)}</section>"
    )


def _fold(summary: str, sentences: Sequence[str], more: str) -> str:
    said = "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences)
    return f"<details><summary>{_text(summary)}</summary>{said}{more}</details>" if said or more else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return UNITS.sub("\\1\N{NO-BREAK SPACE}\\2", escape(text))


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>streaminfer: live demo</title>
<style>
:root {
  --page: #fff; --ink: #1f2328; --muted: #7d858e; --line: #d9dde2;
  --batched: #1769b5; --unbatched: #c9541c; --shared: #7db3e0; --good: #2c8a4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --ink: #e3e7eb; --muted: #8f98a1; --line: #333a42;
    --batched: #63aef2; --unbatched: #f08b57; --shared: #3b6d9c; --good: #5fc47e;
  }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 1.5rem auto 3rem; padding: 0 1rem;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0; }
h3 { font-size: 1rem; margin: 1.25rem 0 0.25rem; }
p { margin: 0.5rem 0; }
.headline { font-size: 1.5rem; line-height: 1.3; font-weight: 650; margin: 0.25rem 0 1rem; }
svg { width: 100%; height: auto; display: block; }
svg.narrow { display: none; }
details { margin: 0.75rem 0; border-top: 1px solid var(--line); padding-top: 0.5rem; }
summary { cursor: pointer; color: var(--batched); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); font-size: 0.85rem; color: var(--muted); }
@media (max-width: 40rem) {
  .headline { font-size: 1.25rem; }
  svg.wide { display: none; }
  svg.narrow { display: block; }
}
</style>
<h1>streaminfer: live microphones and cameras on one machine</h1>
@top
@sections
<footer><p>@where</p><p>Speech: a LibriVox reading, public domain. Video: photographs by NASA and SpaceX, public domain.
Models: Silero VAD (MIT) and BlazeFace (Apache-2.0).</p></footer>
</html>
"""
