"""Figures: measured values that a benchmark prints beside their bars, for the tables of README and docs.

A benchmark declares its figures at the top of its module and reports what it measured::

    P99 = Figure("p99 of silero beside BlazeFace", over="silero alone", at_most=1.3)
    P99.report(ratios, case="60 % of the core")

Bars are in these declarations only. ``run.py --record NAME`` stores the reports of a run in
``benchmarks/results/NAME.json``; ``python docs/benchmark_tables.py`` makes the tables from these files.
"""

import dataclasses
import datetime as dt
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

__all__ = ["RECORD", "RESULTS", "Figure", "record"]

RECORD = "STREAMINFER_BENCHMARK_RECORD"
"""Environment variable that names the file to which each report is appended, as a line of JSON."""

RESULTS = Path(__file__).parents[1] / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured quantity, in one case or several.

    Attributes:
        name: unique description, for a reader who knows the package and not the benchmark.
        over: the baseline, measured in the same run, by which the value is divided or beside which it is shown.
        form: format of a value.
        at_most: the bar, if less is better.
        at_least: the bar, if more is better; without either bar, the figure is printed and not judged.
    """

    name: str = dataclasses.field(kw_only=False)
    over: str = ""
    form: str = "{:.2f}×"
    at_most: float | None = None
    at_least: float | None = None

    @property
    def bar(self) -> str:
        """The bar as text; empty without a bar."""
        limits = (("≤", self.at_most), ("≥", self.at_least))
        return " and ".join(f"{sign} {self._written(limit)}" for sign, limit in limits if limit is not None)

    def is_met(self, value: float) -> bool:
        """Return whether a value reaches the bar."""
        return bool(
            (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)
        )

    def report(self, values: float | Sequence[float], *, case: str = "", of: int | None = None, note: str = "") -> bool:
        """Print a measurement beside its bar, and record it if this run is recorded.

        Args:
            values: one value, or one per round, which are printed as median, minimum and maximum.
            case: the case, in the words of a table row, if there are several.
            of: the total, if the value counts a part of it.
            note: text that is printed beside the value, such as the baseline's own value.

        Returns:
            Whether the value reaches the bar; true without a bar.
        """
        rounds = list(values) if isinstance(values, Sequence) else [values]
        value = statistics.median(rounds)
        measured = self._written(value)
        if len(rounds) > 1:
            measured += f" ({self._written(min(rounds))} to {self._written(max(rounds))})"
        if of is not None:
            measured += f" of {of:,}"
        if note:
            measured += f"; {note}"
        met = self.is_met(value) if self.bar else None
        subject = ", ".join(part for part in (self.name, case) if part) + (f", over {self.over}" if self.over else "")
        verdict = "" if met is None else f"   bar {self.bar}: {'met' if met else 'MISSED'}"
        print(f"  {subject}: {measured}{verdict}", flush=True)
        if path := os.environ.get(RECORD):
            line = {"figure": self.name, "case": case, "measured": measured, "met": met}
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return met is not False

    def _written(self, value: float) -> str:
        return self.form.format(value)


def record(name: str, reports: Path) -> int:
    """Store the reports of a benchmark; stored reports of figures and cases that it did not measure stay.

    Args:
        name: name of the benchmark.
        reports: the file to which its reports were appended.

    Returns:
        The number of reports that were stored.
    """
    path = RESULTS / f"{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    today = dt.datetime.now(dt.UTC).date().isoformat()
    lines = [json.loads(line) for line in reports.read_text(encoding="utf-8").splitlines()] if reports.exists() else []
    for line in lines:
        row = {"measured": line["measured"], "met": line["met"], "date": today}
        stored.setdefault(line["figure"], {})[line["case"]] = row
    if lines:
        path.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return len(lines)
