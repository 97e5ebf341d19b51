"""Reports: figures, files, pages."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import attrs
import numpy as np
import pytest
from pictures import check_printable
from small_files import files_limited_to

from streaminfer import LatencyHistogram
from streaminfer.loadtest import Record, Report
from streaminfer.loadtest.capacity.search import CapacitySearch, Step
from streaminfer.loadtest.quantiles import quantiles_of
from streaminfer.loadtest.report.junit import make_junit
from streaminfer.loadtest.report.page import make_page
from streaminfer.loadtest.report.plots import plot_over_time, plot_percentiles
from streaminfer.loadtest.report.sentences import say_headline
from streaminfer.loadtest.verdict.verdict import Verdict, compare


@pytest.fixture
def report():
    """Return a report of 1,000 requests of two devices, 10 of them without a response."""
    rng = np.random.default_rng(1)
    latency = 0.01 * rng.lognormal(0, 0.4, 1000)
    latency[::100] = np.inf
    device = np.where(np.arange(1000) % 4 == 0, "phone <1>", "studio")
    record = Record(
        np.arange(1000) / 100,
        np.full(1000, 1e-4),
        latency,
        np.where(np.isinf(latency), "Overloaded", "ok"),
        {"queue": np.where(np.isinf(latency), np.nan, 0.002), "before sending": np.full(1000, 0.05)},
        {"accuracy": np.where(device == "studio", 0.9, 0.8)},
        {"device": device},
    )
    return Report(
        record, slo_s=0.03, duration_s=10.0, name="a & b", seed=7, arrivals="Poisson(rate=100)", machine="here"
    )


@pytest.fixture(params=[200.0, 1000.0], ids=["never missed", "found"])
def capacity(request):
    """Return the result of a search up to a rate, on a device that keeps its objective up to 321/s."""
    search = CapacitySearch(10.0, request.param, tolerance=0.05)
    while (rate := search.next_rate) is not None:
        search.add(Step.of(rate, np.full(100, rate > 321.0)))
    return search.result()


class TestFigures:
    def test_quantile_is_one_of_the_latencies(self, report):
        """A quantile is the smallest latency that at least that share of the requests does not exceed."""
        assert report.quantile(0.5) == np.sort(report.latencies_s)[499]
        assert np.isfinite(report.quantile(0.99))
        assert np.isinf(report.quantile(0.991))

    def test_rank_is_that_of_the_histogram(self):
        """A quantile has the rank of the histogram: if a share is a whole number of requests, rounding adds none."""
        latencies = np.arange(1, 101) / 1000
        histogram = LatencyHistogram(significant_digits=3)
        histogram.record_many(latencies)
        shares = np.arange(0, 101) / 100

        np.testing.assert_allclose(quantiles_of(latencies, shares), histogram.quantiles(shares), rtol=2e-3)

    @pytest.mark.parametrize("q", [99, -0.1, np.nan, "0.5"])
    def test_quantile_takes_a_share_not_a_percentage(self, report, q):
        """A percentage, such as 99, is rejected."""
        with pytest.raises((TypeError, ValueError), match="q: expected"):
            report.quantile(q)

    def test_shares(self, report):
        """Share on time, outcomes and goodput are over all requests."""
        assert report.outcomes == {"ok": 990, "Overloaded": 10}
        assert report.on_time == np.mean(report.latencies_s <= 0.03)
        assert report.goodput == pytest.approx(report.on_time * 100)

    @pytest.mark.parametrize(
        ("requests", "late", "objective", "said"),
        [
            (30_000, 301, 0.99, "Missed: 98.99% of 30,000 requests within 30 ms at 1,000/s (objective 0.99)"),
            (30_000, 300, 0.99, "Passed: 99.00% of 30,000 requests within 30 ms at 1,000/s (objective 0.99)"),
            (100_000, 3, 0.99999, "Missed: 99.997% of 100,000 requests within 30 ms at 1,000/s (objective 0.99999)"),
            (10_000, 4300, 0.57, "Passed: 57.00% of 10,000 requests within 30 ms at 1,000/s (objective 0.57)"),
        ],
    )
    def test_share_on_time_is_rounded_down(self, requests, late, objective, said):
        """The share on time is rounded down: just below the objective, or below 100 %, it does not seem to reach it."""
        latency = np.where(np.arange(requests) < late, 1.0, 0.01)
        record = Record(np.arange(requests) / 1000, np.zeros(requests), latency, np.full(requests, "ok"))
        report = Report(record, slo_s=0.03, objective=objective, duration_s=requests / 1000)

        share = f"{np.floor(1e4 * report.on_time + 1e-6) / 100:.2f}%"

        assert say_headline(report) == said
        assert f"<td>{share}</td>" in make_page(report)
        assert repr(report).endswith(f" {share} on time>")

    def test_repr_counts_requests_without_a_response(self, report):
        """The repr counts requests without a response, so a failed ``assert report.passed`` shows their outcome."""
        assert repr(report).endswith("% on time, 10 Overloaded>")

    def test_failures_say_why(self, report):
        """The sentence about failures has the message of the first error of each class."""
        record = attrs.evolve(report.record, messages={"Overloaded": "the queue is full"})

        said = attrs.evolve(report, record=record).describe()[-1]

        assert said == "No response: 10 Overloaded (the queue is full)."
        assert Record.decode(record.encode()).messages == record.messages

    def test_windows_hold_every_request(self, report):
        """The windows of a run have all its requests."""
        assert sum(latencies.size for _, latencies in report.windows(7)) == 1000

    def test_stages_of_a_device(self, report):
        """Stages are over all requests, or over those of one device."""
        record = attrs.evolve(
            report.record,
            stages={"queue": np.where(report.record.labels["device"] == "studio", 0.002, 0.004)},
            values={"encode_cpu_s": np.full(1000, 0.002)},
        )
        report = attrs.evolve(report, record=record)

        (queue,) = report.by_stage("device", "phone <1>")

        assert (queue.count, queue.quantiles_s["p99"]) == (250, 0.004)
        assert report.by_stage()[0].count == 1000
        assert report.to_dict()["labels"]["device"]["studio"]["stages"]["queue"]["p50"] == 0.002
        page = Page(make_page(report)).text
        assert "Stages by device" in page
        assert "studio: queue7502 ms" in page
        assert "CPU of encode" in page
        assert "phone <1>2 ms" in page

    @pytest.mark.parametrize("label", ["network", ["device"]], ids=["unknown", "a list"])
    def test_unknown_label(self, report, label):
        """The error for an unknown label names the labels of the report."""
        with pytest.raises(ValueError, match=re.escape(f"label: expected one of 'device', got {label!r}")):
            report.by_label(label)

    @pytest.mark.parametrize(("late_s", "kept"), [(0.002, True), (0.004, False)])
    def test_schedule_limit(self, report, late_s, kept):
        """The report has no verdict if requests were sent late by more than a tenth of the SLO."""
        late = Record(*(getattr(report.record, name) for name in ("due_s",)), np.full(1000, late_s), report.latencies_s,
                      report.record.outcome)  # fmt: skip
        other = Report(late, slo_s=0.03, duration_s=10.0, objective=0.5)

        assert other.kept_schedule is kept
        assert other.passed is (True if kept else None)
        assert ("No verdict" in other.describe()[0]) is not kept

    def test_requests_that_were_not_sent(self, report):
        """A request that was never sent breaks the schedule."""
        record = Record(report.record.due_s, np.full(1000, np.nan), report.latencies_s, report.record.outcome)

        assert not Report(record, slo_s=0.03, duration_s=10.0).kept_schedule


def test_repr_of_a_tail_without_response(report):
    """The repr of a tail without responses says so, instead of an infinite number of days."""
    lost = attrs.evolve(report, record=report.record.where(np.isinf(report.latencies_s)))

    assert "p99 no response" in repr(lost)


class TestFiles:
    def test_saved_report_is_the_same(self, report, tmp_path):
        """A loaded report equals the saved one."""
        report.save(tmp_path / "run.json")

        loaded = Report.load(tmp_path / "run.json")

        assert loaded.to_dict() == report.to_dict()
        assert loaded.capacity is None
        np.testing.assert_array_equal(loaded.latencies_s, report.latencies_s)
        np.testing.assert_array_equal(loaded.record.labels["device"], report.record.labels["device"])

    @pytest.mark.parametrize("write", [Report.save, Report.to_junit, Report.to_html])
    def test_failed_write_leaves_the_old_file(self, report, tmp_path, write):
        (tmp_path / "run").write_text("old")

        with files_limited_to(10), pytest.raises(OSError, match="too large"):
            write(report, tmp_path / "run")

        assert (tmp_path / "run").read_text(encoding="utf-8") == "old"

    def test_capacity_is_saved(self, report, tmp_path, capacity):
        """A capacity is saved with the report; its interval has no upper end if the search never missed."""
        report = attrs.evolve(report, capacity=capacity)
        report.save(tmp_path / "run.json")

        loaded = Report.load(tmp_path / "run.json")

        stored = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["report"]["capacity"]
        assert (stored["rate"], stored["interval"][1] is None) == (capacity.rate, capacity.interval[1] == np.inf)
        assert str(loaded.capacity) == str(capacity)
        assert [it.late_share for it in loaded.capacity.steps] == [it.late_share for it in capacity.steps]
        assert f"Found: {capacity}." in loaded.describe()

    def test_report_of_an_earlier_build(self, report, tmp_path):
        """A report that an earlier build saved without a capacity can be loaded for a comparison."""
        report.save(tmp_path / "run.json")
        stored = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
        del stored["report"]["capacity"]
        (tmp_path / "run.json").write_text(json.dumps(stored))

        assert Report.load(tmp_path / "run.json").capacity is None

    def test_json_is_strict(self, report, tmp_path):
        """A saved report is strict JSON, in which an infinite latency is null."""
        report.save(tmp_path / "run.json")

        def refuse(word):
            raise AssertionError(word)

        stored = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
        assert stored["report"]["latency_s"]["p99.9"] is None
        assert stored["report"]["means"]["device"]["phone <1>"] == pytest.approx({"accuracy": 0.8})

    def test_values_in_json_are_strict(self, report):
        """An infinite mean is null in JSON."""
        endless = attrs.evolve(report.record, values={"accuracy": np.full(1000, np.inf)})

        found = attrs.evolve(report, record=endless).to_dict()

        assert json.dumps(found, allow_nan=False)
        assert found["means"]["device"]["studio"]["accuracy"] is None

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "other", "version": 1}', b"\x89PNG"])
    def test_loading_another_file_is_an_error(self, tmp_path, content):
        """The error for another file names that file."""
        (tmp_path / "x.json").write_bytes(content)

        with pytest.raises(ValueError, match=r"x\.json: not a saved report: [fE']"):
            Report.load(tmp_path / "x.json")

    def test_junit_of_an_odd_name(self, report):
        """Characters that XML cannot hold, such as the escapes of colored output, are replaced."""
        suite = ET.fromstring(make_junit(attrs.evolve(report, name="red \x1b[31m <&\x00 \udcff")))

        assert suite.get("name") == "red \ufffd[31m <&\ufffd \ufffd"

    def test_junit(self, report, tmp_path):
        """A missed objective is a failure, and a comparison without a verdict is skipped."""
        slower = Report(
            Record(report.record.due_s, report.record.late_s, report.latencies_s, report.record.outcome),
            slo_s=0.001,
            duration_s=10.0,
        )

        suite = ET.fromstring(make_junit(slower, compare(report, slower)))
        report.to_junit(tmp_path / "junit.xml")

        assert [(case.get("name"), [child.tag for child in case]) for case in suite] == [
            ("schedule kept", ["system-out"]),
            ("objective", ["failure"]),
            ("comparison", ["skipped"]),
        ]
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
        assert ET.parse(tmp_path / "junit.xml").getroot().get("name") == "a & b"

    @pytest.mark.parametrize(
        ("result", "tag"),
        [
            ("regressed", "failure"),
            ("undecided", "skipped"),
            ("unchanged", "system-out"),
            ("improved", "system-out"),
        ],
    )
    def test_junit_of_a_comparison(self, report, result, tag):
        """A regression is a failure, a comparison without a verdict is skipped, and any other comparison passes."""
        verdict = Verdict(result, 1.0, (0.9, 1.1), 0.99, 0.01, 0.02, 0.02, 0.1)

        suite = ET.fromstring(make_junit(report, verdict))

        assert [child.tag for child in suite[-1]] == [tag]
        assert [suite.get(kind) for kind in ("failures", "skipped")] == [
            str(sum(case.find(kind) is not None for case in suite)) for kind in ("failure", "skipped")
        ]


class Page(html.parser.HTMLParser):
    """Parser that collects the tags, the links and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.text += data


class TestPage:
    def test_html_loads_no_external_resource(self, report, tmp_path):
        """Every link is to the page itself, and names are escaped."""
        report.to_html(tmp_path / "report.html")

        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))

        assert all(link.startswith("#") for link in page.links)
        assert "script" not in page.tags
        assert "phone <1>" in page.text
        assert "a & b" in page.text

    def test_has_pictures_and_tables(self, report, tmp_path):
        """Each picture has a wide and a narrow form, and each part has a table."""
        report.to_html(tmp_path / "report.html")

        text = (tmp_path / "report.html").read_text(encoding="utf-8")

        assert text.count('" class="wide"') == text.count('" class="narrow"') == 4
        assert "prefers-color-scheme: dark" in text
        for title in ("By device", "By stage", "Measured by device", "Outcomes", "no response"):
            assert title in text

    def test_label_of_many_values(self, report):
        """A label with many values has a table, and no picture, which would be taller than any screen."""
        record = attrs.evolve(report.record, labels={"file": np.array([f"{n}.png" for n in range(1000)])})

        text = make_page(attrs.evolve(report, record=record, name=""))

        assert text.count('class="wide"') == 3  # latency by percentile and over time, stages
        assert "999.png" in text

    def test_label_without_a_value(self, report):
        """A label without a value has no section."""
        record = attrs.evolve(report.record, labels={"lens": np.full(1000, "")})

        assert "By lens" not in make_page(attrs.evolve(report, record=record))

    @pytest.mark.parametrize("name", ["$5 or $6", r"a $\frac$", "東京"])
    def test_label_with_special_characters(self, report, name):
        """A chart shows a label unchanged: as text and not as a formula, in the reader's font."""
        record = attrs.evolve(report.record, labels={"device": np.where(report.record.due_s < 5, name, "studio")})

        text = make_page(attrs.evolve(report, record=record))

        assert re.findall(r"<text[^>]*>([^<]*)</text>", text).count(name) == 2  # wide and narrow

    def test_file_names_that_are_not_utf8(self, report, tmp_path):
        """A file name that is not UTF-8, as Python reads it from a folder, is on the page with escapes."""
        labels = {"file": np.where(report.record.due_s < 5, "caf\udce9.wav", "b.wav")}
        named = attrs.evolve(report, record=attrs.evolve(report.record, labels=labels), name="caf\udce9")

        named.to_html(tmp_path / "report.html")

        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "Load test caf\\udce9" in page.text
        assert "caf\\udce9.wav" in page.text

    def test_capacity_is_drawn(self, report, capacity):
        """A report with a capacity has a picture of the steps of the search, before all others."""
        text = make_page(attrs.evolve(report, capacity=capacity))

        assert text.index("<h2>Capacity") < text.index("<h2>Latency by percentile")
        assert "95% interval" in text

    @pytest.mark.parametrize("draw", [plot_percentiles, plot_over_time], ids=lambda draw: draw.__name__)
    def test_pictures_can_be_printed(self, report, draw):
        """In a picture, no text covers another."""
        check_printable(draw(None, report))

    def test_summary_for_notebooks(self, report):
        """A notebook shows the headline and the tails, without pictures."""
        assert "phone &lt;1&gt;" in report._repr_html_()
        assert "<svg" not in report._repr_html_()
