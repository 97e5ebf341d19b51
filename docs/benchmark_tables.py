"""Makes the tables of figures: ``docs/reference/figures-FAMILY.md`` and the one of README.

``python docs/benchmark_tables.py`` writes them from ``benchmarks/results``, where ``benchmarks/run.py --record`` stores
what a run measured, and from the declarations of the figures in ``benchmarks``, where each bar stands. A test checks
that they are current.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _lib.figures import Figure

__all__ = ["declared_figures", "draw_pages", "draw_readme", "stored_results"]

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
REFERENCE = ROOT / "docs" / "reference"
README = ROOT / "README.md"
START, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
IN_README = (
    ("live_streams", "live audio streams with 99 % of chunks on time, batched", ""),
    ("voice", "live audio streams per core, beside Pipecat", ""),
    ("planner", "share on time at 1.2× capacity, SLO 50 ms", ""),
    ("batching", "CPU per request of a batcher around a no-op", "64 callers, lists"),
    ("triton_faults", "requests of the fault drill without an end", "gRPC"),
)
"""Benchmark, figure and case of each row of the table in README."""

HEAD = """# Figures: {family}

This page is made by `python docs/benchmark_tables.py`; do not edit it.
[Benchmarks](benchmarks.md) says how to read a figure and how to measure it again.
Each is the median of its rounds, with the least and the most in parentheses, and stands beside its bar.
"""
COLUMNS = "| figure | over | bar | measured | on |\n|---|---|---|---|---|\n"
README_COLUMNS = "| figure | bar | measured | command |\n|---|---|---|---|\n"


def declared_figures() -> dict[str, Figure]:
    """Return all figures by name, read from the sources: a benchmark may need packages that are not installed.

    Raises:
        ValueError: two have one name.
    """
    figures: dict[str, Figure] = {}
    for path in sorted(BENCHMARKS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Figure":
                name = ast.literal_eval(node.args[0])
                options: Any = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
                if name in figures:
                    raise ValueError(f"two figures have the name {name!r}")
                figures[name] = Figure(name, **options)
    return figures


def stored_results() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return what was measured: benchmark, figure, case."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (BENCHMARKS / "results").glob("*.json")}


def draw_pages() -> dict[Path, str]:
    """Return the page of each family."""
    figures, results = declared_figures(), stored_results()
    pages: dict[Path, str] = {}
    for name, text in _descriptions().items():
        if name not in results:
            continue
        page = REFERENCE / f"figures-{_family(name)}.md"
        head = HEAD.format(family=_family(name))
        rows = [
            f"| {_subject(figure, case)} | {figures[figure].over} | {figures[figure].bar or 'printed'} "
            f"| {_measured(row)} | {row['date']} |\n"
            for figure, cases in results[name].items()
            for case, row in cases.items()
        ]
        section = f"\n## `{name}`\n\n{text[0].upper()}{text[1:]}.\n\n{COLUMNS}{''.join(rows)}"
        pages[page] = pages.get(page, head) + section
    return pages


def draw_readme() -> str:
    """Return README with its table."""
    figures, results = declared_figures(), stored_results()
    rows = []
    for name, figure, case in IN_README:
        over = f", over {figures[figure].over}" if figures[figure].over else ""
        rows.append(
            f"| {_subject(figure, case)}{over} | {figures[figure].bar} | {_measured(results[name][figure][case])} "
            f"| `python benchmarks/run.py {name}` |\n"
        )
    before, rest = README.read_text(encoding="utf-8").split(START)
    return f"{before}{START}{README_COLUMNS}{''.join(rows)}{END}{rest.split(END)[1]}"


def _descriptions() -> dict[str, str]:
    """Return what each benchmark measures, as ``benchmarks/run.py`` lists it."""
    for node in ast.parse((BENCHMARKS / "run.py").read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "BENCHMARKS"
        ):
            return dict(ast.literal_eval(node.value))
    raise ValueError("benchmarks/run.py lists no BENCHMARKS")


def _family(name: str) -> str:
    return next((path.parent.name for path in BENCHMARKS.glob(f"*/bench_{name}.py")), "peers")


def _measured(row: dict[str, Any]) -> str:
    value, separator, note = str(row["measured"]).partition("; ")
    return value + (" (missed)" if row["met"] is False else "") + separator + note


def _subject(figure: str, case: str) -> str:
    return f"{figure}, {case}" if case else figure


if __name__ == "__main__":
    for page, text in draw_pages().items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
    README.write_text(draw_readme(), encoding="utf-8")
    print(f"wrote {README}")
