"""The tables of figures are those of the last recorded run, with the bars that the benchmarks declare."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up their module here
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


TABLES = load(ROOT / "docs" / "benchmark_tables.py")
FIGURES = load(ROOT / "benchmarks" / "_lib" / "figures.py")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(FIGURES, "RESULTS", tmp_path)
    return tmp_path


def test_pages_are_current():
    """`python docs/benchmark_tables.py` would change nothing."""
    for page, text in TABLES.draw_pages().items():
        assert page.read_text(encoding="utf-8") == text, page.name
    assert TABLES.README.read_text(encoding="utf-8") == TABLES.draw_readme()


def test_no_obsolete_page_exists():
    pages = {page.name for page in TABLES.draw_pages()}

    assert {page.name for page in TABLES.REFERENCE.glob("figures-*.md")} == pages


def test_declared_figures_are_exactly_those_measured():
    """Every declared figure has a measurement, and no measurement of a renamed or deleted figure is left."""
    measured = {figure for figures in TABLES.stored_results().values() for figure in figures}

    assert measured == set(TABLES.declared_figures())


@pytest.mark.parametrize(
    ("values", "case", "note", "line", "met"),
    [
        (1.2, "", "", "  p99, over alone: 1.20×   bar ≤ 1.30×: met\n", True),
        ([1.4, 1.1, 1.5], "", "", "  p99, over alone: 1.40× (1.10× to 1.50×)   bar ≤ 1.30×: MISSED\n", False),
        (1.3, "at 20 %", "greedy 2", "  p99, at 20 %, over alone: 1.30×; greedy 2   bar ≤ 1.30×: met\n", True),
    ],
)
def test_report_prints_the_median_beside_the_bar(capsys, values, case, note, line, met):
    assert FIGURES.Figure("p99", over="alone", at_most=1.3).report(values, case=case, note=note) is met
    assert capsys.readouterr().out == line


def test_count_is_shown_beside_all_that_there_are(capsys):
    assert not FIGURES.Figure("requests lost", form="{:.0f}", at_most=0).report(3, of=84975)
    assert capsys.readouterr().out == "  requests lost: 3 of 84,975   bar ≤ 0: MISSED\n"


def test_figure_without_bar_is_neither_met_nor_missed(capsys):
    """A figure without a bar is neither met nor missed."""
    assert FIGURES.Figure("age", form="{:.0f} ms").report(12.4)
    assert capsys.readouterr().out == "  age: 12 ms\n"


def test_bar_may_have_two_sides():
    figure = FIGURES.Figure("pause", at_least=0.95, at_most=1.05)

    assert figure.bar == "≤ 1.05× and ≥ 0.95×"
    assert [figure.is_met(value) for value in (0.94, 0.95, 1.05, 1.06)] == [False, True, True, False]


def test_recorded_figures_replace_only_the_same_case(results, tmp_path, monkeypatch):
    """Recorded figures replace those of the same case and leave other cases unchanged."""
    reports = tmp_path / "reports"
    monkeypatch.setenv(FIGURES.RECORD, str(reports))
    figure = FIGURES.Figure("p99", at_most=1.3)
    figure.report(1.1, case="quiet")
    figure.report(1.5, case="noisy")
    assert FIGURES.record("device", reports) == 2
    reports.unlink()
    figure.report(1.2, case="noisy")

    assert FIGURES.record("device", reports) == 1
    stored = json.loads((results / "device.json").read_text(encoding="utf-8"))
    assert {case: (row["measured"], row["met"]) for case, row in stored["p99"].items()} == {
        "quiet": ("1.10×", True),
        "noisy": ("1.20×", True),
    }


def test_run_that_reports_nothing_stores_nothing(results, tmp_path):
    assert FIGURES.record("device", tmp_path / "none") == 0
    assert not list(results.iterdir())
