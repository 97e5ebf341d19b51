"""The whole demo, headless and short; what it prints and what its report holds."""

import ast
import importlib
import re
import runpy
from html.parser import HTMLParser

import numpy as np
import pytest

import streaminfer as si


@pytest.fixture
def live_demo(_examples_can_be_imported):
    return importlib.import_module("live_demo")


SHORT = ["--seconds", "0.5", "--streams", "6", "--cameras", "1"]


class Page(HTMLParser):
    """Tags, what they refer to, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.identifiers, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href"}:
                self.references.append(value)
            elif name == "id":
                self.identifiers.append(value)
            else:
                self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_data(self, data):
        self.text += data


def test_a_short_run_prints_the_table_and_writes_the_report(live_demo, tmp_path, capsys):
    path = tmp_path / "report.html"
    assert live_demo.main([*SHORT, "--visitors", "0.5", "--report", str(path)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    rows = [line for line in lines if line.startswith(("microphones, ", "cameras "))]
    assert [row.split()[0] for row in rows] == ["microphones,", "cameras", "microphones,", "cameras"]
    assert rows[0].split()[2] == "6"
    assert "microphones, batched" in rows[0]
    assert "Speech in librivox_0870.wav" in printed.out
    assert re.search(r"\d+ of 6 microphones lost no chunk; \d+ of these decided every chunk", printed.out)
    assert "Faces in astronaut_pan.mp4" in printed.out
    assert "no batcher, 2 sessions" in printed.out
    assert "decoding the clips" in printed.err
    visitors = [line for line in lines if line.startswith("visitors, ")]
    assert [line[:18].strip() for line in visitors] == ["visitors, no cache", "visitors, cached"]
    compared, equal = re.search(
        r"Of (\d+) answers that were kept or shared, (\d+) are, to the last bit", printed.out
    ).groups()
    assert int(compared) == int(equal) > 0
    budgets = re.search(r"^Error budgets: .*", printed.out, re.MULTILINE)[0]
    assert budgets.count("alerts: ") == 4

    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == page.tags.count("section") == 9
    assert "microphones, batched" in page.text
    # self-contained: it refers to nothing but its own parts and to pictures inside it
    own = {f"#{identifier}" for identifier in page.identifiers}
    assert all(reference in own or reference.startswith("data:image/png;base64,") for reference in page.references)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert not {"script", "link", "iframe", "img"} & set(page.tags)


def test_without_baseline_and_cameras_there_is_one_row(live_demo, tmp_path, capsys):
    path = tmp_path / "report.html"
    options = ["--seconds", "0.3", "--streams", "2", "--cameras", "0", "--no-baseline", "--visitors", "0", "--report"]
    assert live_demo.main([*options, str(path)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^microphones, ", printed, re.MULTILINE)) == 1
    assert "cameras" not in printed
    assert "Faces" not in printed
    assert "isitors" not in printed
    assert Page(path.read_text(encoding="utf-8")).tags.count("svg") == 7


@pytest.mark.parametrize(
    "options", [["--seconds", "0"], ["--streams", "0"], ["--sessions", "0"], ["--cameras", "-1"], ["--visitors", "-1"]]
)
def test_impossible_options_are_refused(live_demo, options, capsys):
    with pytest.raises(SystemExit) as refused:
        live_demo.parse(options)
    assert refused.value.code == 2
    assert "take a number above 0" in capsys.readouterr().err


def make_budget(*, bad):
    """The budget of a service that answered a hundred requests, so many of them late."""
    budget = importlib.import_module("demo.budget")
    slo = budget.make_objective("chunks", threshold_s=0.032, objective=0.99, seconds=8.0)
    for number in range(100):
        slo.record(0.001 if number >= bad else 0.050)
    return budget.BudgetWatch(slo).read()


def make_outcome(*, on_time, seconds=8.0):
    """What a run would have found out, with the share of chunks on time of each way."""
    findings, report, services = (
        importlib.import_module(f"demo.{name}") for name in ("findings", "report", "services")
    )
    meter_of = importlib.import_module("demo.meter").Meter
    machine, audio, video = (importlib.import_module(f"demo.{name}") for name in ("machine", "audio", "video"))
    searches = []
    for way, count, good in zip((services.batched(), services.UNBATCHED[1]), (300, 100), on_time, strict=True):
        meter = meter_of(32_000_000)
        meter.sent = 100
        for number in range(100):
            if number < good:
                meter.answered(5_000_000, si.Response(None, timings=si.request.Timings(0, number, number, 9, 4)))
            else:
                meter.failed(si.DeadlineExceeded(""))
        hold = findings.Hold(
            way=way,
            microphones=count,
            seconds=seconds,
            began_ns=0,
            chunks=meter,
            pictures=None,
            cpu=machine.CpuUse(8.0, 4.0, 0.0, 2.0),
            voice=si.Telemetry("").statistics(),
            budget=make_budget(bad=100 - good),
            heard=[np.array([0.1, np.nan, 0.9], np.float32)],
            faces={},
        )
        searches.append(findings.Search([findings.Step(count, good / 100, held=True)], hold))
    clip = audio.Clip("clip.wav", np.zeros(1536, np.float32), [np.zeros(576, np.float32)] * 3)
    frames = video.Frames("clip.mp4", np.zeros((1, 4, 4, 3), np.uint8), 24.0)
    reference = np.array([0.1, 0.9, 0.9], np.float32)
    return report, report.Outcome("a machine", clip, frames, 0, reference, searches, {"one": 3000.0})


def test_the_ratio_is_of_what_was_held(live_demo):
    report, outcome = make_outcome(on_time=(99, 100))
    assert outcome.ratio == 3.0
    said = report.describe_outcome(outcome)
    assert said[0].startswith("Batched, 3.0 times as many live microphones as in the best unbatched way (300 and 100)")
    assert "of the 1 chunks after a loss 100.0% were decided as without it" in said[2]
    assert "chunks lost: 1 DeadlineExceeded; processors busy: 0.50 with this process, 0.25 with all else" in said[3]
    rows = report.make_rows(outcome)
    assert rows[0] == (
        *("microphones, batched", "300", "yes", "12", "5.0 ms", "5.0 ms", "5.0 ms", "99.00%", "32 ms", "0%", "0.0"),
        "40,000 µs",
    )


def test_a_hold_that_failed_is_called_so(live_demo):
    report, outcome = make_outcome(on_time=(98, 100))
    assert outcome.ratio is None
    assert report.make_rows(outcome)[0][report.HEAD.index("budget left")] == "spent 2.0×"
    said = "chunks: spent 2.0×, highest burn rate over 1.1 s 2.0, alerts: none; chunks: 100% left"
    assert said in report.describe_outcome(outcome)[-2]
    assert "batched: 300 microphones NOT held, 98.00% on time in 8.0 s" in report.describe_outcome(outcome)[0]
    assert report.make_rows(outcome)[0][2] == "no"


def test_a_hold_without_any_answer_can_be_drawn(live_demo):
    _, outcome = make_outcome(on_time=(0, 0))
    page = Page(importlib.import_module("demo.page").make_page(outcome))
    assert page.tags.count("svg") == 5


def test_the_columns_of_the_table_are_aligned(live_demo):
    report, outcome = make_outcome(on_time=(100, 100))
    lines = report.render_table(report.make_rows(outcome)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 4


def _code(text):
    """The syntax of a module without docstrings and annotations of what is returned."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.AsyncFunctionDef, ast.FunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del node.body[0]
            if not isinstance(node, ast.Module):
                node.returns = None
    return ast.dump(tree)


def test_the_quickstart_is_what_the_readme_shows(examples, monkeypatch, capsys):
    readme = (examples.parent / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert _code((examples / "quickstart.py").read_text(encoding="utf-8")) == _code(shown[1])
    monkeypatch.chdir(examples.parent)
    runpy.run_path(str(examples / "quickstart.py"), run_name="__main__")
    statistics, batches = capsys.readouterr().out.splitlines()
    assert statistics.startswith("<TelemetryStatistics 'speech': ")
    assert sum(int(size) * int(count) for size, count in re.findall(r"(\d+): (\d+)", batches)) > 0
