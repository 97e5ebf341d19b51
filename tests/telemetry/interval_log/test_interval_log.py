"""Interval logs: the hdrhistogram package reads ours, and we read those of the package and of Java."""

import random
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader, HistogramLogWriter
from small_files import files_limited_to

from streaminfer.telemetry import (
    IntervalLog,
    LatencyHeatMap,
    LatencyHistogram,
    merge_interval_logs,
    read_interval_log,
)

START_S = 1_700_000_000.0
LAYOUT = (1000, 3_600_000_000_000, 3)
JAVA_LOGS = Path(__file__).parent / "java_logs"


def filled(seed, count=500):
    histogram = LatencyHistogram()
    for _ in range(count):
        histogram.record(random.Random(seed + count).lognormvariate(-4, 1))
        seed += 1
    return histogram


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.hlog"


def test_log_round_trips(path):
    first, second = filled(1), filled(2)
    with IntervalLog(path, comment="streaminfer\nfaces") as log:
        log.write(first, start_s=START_S, end_s=START_S + 1)
        log.write(second, start_s=START_S + 1, end_s=START_S + 2.5, tag="large")

    read = list(read_interval_log(path))

    assert [(it.start_s, it.end_s, it.tag) for it in read] == [
        (START_S, START_S + 1, ""),
        (START_S + 1, START_S + 2.5, "large"),
    ]
    assert [it.histogram for it in read] == [first, second]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["#streaminfer", "#faces", "#[Histogram log format version 1.3]"]
    assert lines[3].startswith("#[StartTime: ")
    assert lines[5] == '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    assert float(lines[6].split(",")[2]) == pytest.approx(first.max * 1e3, abs=1e-3)  # in milliseconds


def test_hdrhistogram_package_reads_our_log(path):
    first, second = filled(3), filled(4)
    with IntervalLog(path) as log:
        log.write(first, start_s=START_S, end_s=START_S + 1)
        log.write(second, start_s=START_S + 1, end_s=START_S + 2, tag="A")

    reader = HistogramLogReader(str(path), HdrHistogram(*LAYOUT))
    try:
        for ours, tag, start_s in ((first, None, START_S), (second, "A", START_S + 1)):
            theirs = reader.get_next_interval_histogram(absolute=True)
            assert theirs.get_total_count() == ours.count
            assert theirs.get_tag() == tag
            assert theirs.get_start_time_stamp() == pytest.approx(start_s * 1000)
            assert theirs.get_value_at_percentile(99.0) == pytest.approx(ours.quantile(0.99) * 1e9, rel=1e-9)
        assert reader.get_next_interval_histogram() is None
    finally:
        reader.close()


def test_log_of_the_hdrhistogram_package_is_read(path):
    theirs = HdrHistogram(*LAYOUT)
    for value in range(1000, 10**7, 9999):
        theirs.record_value(value)
    with path.open("w") as file:
        writer = HistogramLogWriter(file)
        writer.output_comment("[Logged by hdrhistogram]")
        writer.output_log_format_version()
        writer.output_base_time(START_S * 1000)
        writer.output_legend()
        writer.output_interval_histogram(theirs, 3.0, 4.0)

    (interval,) = read_interval_log(path)

    assert (interval.start_s, interval.end_s, interval.tag) == (START_S + 3, START_S + 4, "")
    assert interval.histogram.count == theirs.get_total_count()
    assert interval.histogram.quantile(0.5) * 1e9 == theirs.get_value_at_percentile(50.0)


@pytest.mark.parametrize("start_s", [0.0, START_S, 4e9, 1e15], ids=["zero", "past", "future", "no date"])
def test_hdrhistogram_package_skips_no_interval(path, start_s):
    """The log starts with its first interval, because the package's reader skips intervals before the start."""
    with IntervalLog(path) as log:
        for second in range(3):
            log.write(filled(second, 9), start_s=start_s + second, end_s=start_s + second + 1)

    reader = HistogramLogReader(str(path), HdrHistogram(*LAYOUT))
    try:
        read = [reader.get_next_interval_histogram() for _ in range(3)]
        assert [histogram.get_start_time_stamp() / 1000 - start_s for histogram in read] == [0, 1, 2]
        assert reader.get_next_interval_histogram() is None
    finally:
        reader.close()


def test_log_without_intervals_has_a_header(path):
    IntervalLog(path, comment="nothing yet").close()

    assert path.read_text(encoding="utf-8").startswith(
        "#nothing yet\n#[Histogram log format version 1.3]\n#[StartTime: "
    )
    assert list(read_interval_log(path)) == []


JAVA_FIGURES = [  # of HistogramLogReaderWriterTest.java: seconds, histograms, values, 99.9th percentile, maximum
    ("jHiccup-2.0.7S.logV2", 1441812279.474, None, 62, 48_761, 1_745_879_039, 1_796_210_687),
    ("jHiccup-2.0.7S.logV2", 1441812279.474, (5, 20), 15, 11_664, 1_536_163_839, 1_544_552_447),
    ("jHiccup-2.0.7S.logV2", 1441812279.474, (40, 60), 20, 15_830, 1_779_433_471, 1_796_210_687),
    ("jHiccup-2.0.6.logV1", 1438867590.285, None, 88, 65_964, 1_829_765_119, 1_888_485_375),
    ("jHiccup-2.0.6.logV1", 1438867590.285, (5, 20), 15, 11_213, 1_019_740_159, 1_032_323_071),
    ("jHiccup-2.0.6.logV1", 1438867590.285, (50, 80), 29, 22_630, 1_871_708_159, 1_888_485_375),
    ("jHiccup-2.0.1.logV0", 1438869961.225, None, 81, 61_256, 1_510_998_015, 1_569_718_271),
    ("jHiccup-2.0.1.logV0", 1438869961.225, (20, 45), 25, 18_492, 459_007, 623_103),
    ("jHiccup-2.0.1.logV0", 1438869961.225, (46, 80), 34, 25_439, 1_209_008_127, 1_234_173_951),
]


@pytest.mark.parametrize(("name", "start_s", "seconds", "histograms", "values", "p999_ns", "max_ns"), JAVA_FIGURES)
def test_logs_of_the_java_project_give_its_figures(name, start_s, seconds, histograms, values, p999_ns, max_ns):
    """Logs of every version give the figures that the tests of the Java project expect."""
    low, high = (0, 1e9) if seconds is None else seconds
    path = JAVA_LOGS / f"{name}.hlog"

    read = list(read_interval_log(path, since_s=start_s + low, until_s=start_s + high))
    merged = merge_interval_logs(path, since_s=start_s + low, until_s=start_s + high)[""]

    def as_java_adds(seconds):
        """Return a duration as Java adds it: it records the lowest value of each part again, with three digits."""
        least = HdrHistogram(*merged._layout()).get_lowest_equivalent_value(round(seconds * 1e9))
        return HdrHistogram(1, 3_600_000_000_000, 3).get_highest_equivalent_value(least)

    assert (len(read), sum(interval.histogram.count for interval in read), merged.count) == (histograms, values, values)
    assert (as_java_adds(merged.quantile(0.999)), as_java_adds(merged.max)) == (p999_ns, max_ns)


def test_tags_of_a_file_of_the_java_project():
    """The file has each interval twice, with a tag and without, and the merged histograms are equal."""
    merged = merge_interval_logs(JAVA_LOGS / "tagged-Log.logV2.hlog")

    assert {tag: histogram.count for tag, histogram in merged.items()} == {"": 16_145, "A": 16_145}
    assert merged[""] == merged["A"]


def test_histograms_that_grew_are_merged_whole(path):
    """A log can have several layouts, if its writer's histograms grow with their values; a merge clamps no duration."""
    narrow = LatencyHistogram(lowest_s=1e-5, highest_s=0.1, significant_digits=2)
    wide = LatencyHistogram(lowest_s=1e-6, highest_s=100.0)
    narrow.record(0.05)
    wide.record(50.0)
    with IntervalLog(path) as log:
        log.write(narrow, start_s=START_S, end_s=START_S + 1)
        log.write(wide, start_s=START_S + 1, end_s=START_S + 2)

    merged = merge_interval_logs(path)[""]

    assert (merged.count, merged.clamped) == (2, 0)
    assert merged.max == pytest.approx(50.0, rel=1e-3)
    assert merged.quantile(0.5) == pytest.approx(0.05, rel=1e-2)
    assert LatencyHeatMap.of_intervals(read_interval_log(path)).counts.sum() == 2


def java(path, *head):
    """Write a log as Java's HistogramLogWriter does, with a tag; return the start and the tag of each interval."""
    text = filled(5).encode()
    lines = ["#[Logged by jHiccup 2.0.9]", "#[Histogram log format version 1.3]", *head]
    lines += ['"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"']
    lines += [f"0.127,1.007,2.769,{text}", f"Tag=A,1.134,0.999,0.442,{text}"]
    path.write_text("\n".join(lines) + "\n")
    return [(it.start_s, it.tag) for it in read_interval_log(path)]


@pytest.mark.parametrize(
    ("head", "origin_s"),
    [
        ((), 0.0),
        (("#[StartTime: 1441812279.474 (seconds since epoch), Wed Sep 09 08:24:39 PDT 2015]",), 1441812279.474),
        (("#[StartTime: 1441812279.474 (seconds since epoch), x]", "#[BaseTime: 5.0 (seconds since epoch)]"), 5.0),
    ],
    ids=["without a start", "relative to the start", "relative to a base"],
)
def test_base_times_of_java_logs(path, head, origin_s):
    assert java(path, *head) == [(pytest.approx(origin_s + 0.127), ""), (pytest.approx(origin_s + 1.134), "A")]


@pytest.mark.parametrize(
    ("line", "start_s"), [("-2.5,1.0,2.7,", 7.5), ("1.5E0,1.0E0,2.7E-3,", 11.5), ("Tag=a b,0,1,2,", 10.0)]
)
def test_numbers_and_tags_of_other_writers_are_read(path, line, start_s):
    encoded = LatencyHistogram().encode()
    path.write_bytes(f"#[BaseTime: 10.0 (seconds since epoch)]\r\n{line}{encoded}\r\n".encode())
    (interval,) = read_interval_log(path)
    assert (interval.start_s, interval.end_s) == (start_s, start_s + 1.0)


def test_reading_and_merging_by_range_and_tag(path):
    with IntervalLog(path) as log:
        for second in range(5):
            log.write(filled(second, 9), start_s=START_S + second, end_s=START_S + second + 1, tag="ab"[second % 2])
    read = read_interval_log(path, since_s=START_S + 1, until_s=START_S + 4, tag="b")
    assert [it.start_s - START_S for it in read] == [1, 3]
    assert {tag: it.count for tag, it in merge_interval_logs(path, path, until_s=START_S + 2).items()} == {
        "a": 18,
        "b": 18,
    }


def test_truncated_last_line_is_dropped(path):
    """A last line that its writer did not finish is dropped, and the next writer continues the log."""
    with IntervalLog(path) as log:
        log.write(filled(1), start_s=START_S, end_s=START_S + 1)
        log.write(filled(2), start_s=START_S + 1, end_s=START_S + 2)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(list(read_interval_log(path))) == 1
    with IntervalLog(path) as log:  # of the restarted process
        log.write(filled(3), start_s=START_S + 5, end_s=START_S + 6)
    assert [it.start_s - START_S for it in read_interval_log(path)] == [0, 5]
    assert path.read_text(encoding="utf-8").count("StartTimestamp") == 1


@pytest.mark.parametrize("line", ["nonsense", "1.0,2.0,3.0,HISTxx", "1.0;2.0;3.0;HISTFAAA"])
def test_malformed_line_is_named(path, line):
    path.write_text(f"#x\n{line}\n")
    with pytest.raises(ValueError, match=r"log\.hlog, line 2: "):
        list(read_interval_log(path))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"tag": "a,b"}, ValueError, "tag: expected a text without commas and spaces"),
        ({"tag": 3}, TypeError, "tag: expected a string"),
        ({"end_s": 1.0}, ValueError, "end_s: expected seconds ≥ start_s=2.0"),
        ({"start_s": -1.0}, ValueError, "start_s: expected seconds since the epoch"),
        ({"histogram": 3}, TypeError, "histogram: expected a LatencyHistogram"),
    ],
)
def test_bad_arguments(path, arguments, error, text):
    with IntervalLog(path) as log, pytest.raises(error, match=text):
        log.write(**{"histogram": LatencyHistogram(), "start_s": 2.0, "end_s": 3.0} | arguments)


@pytest.mark.parametrize("content", ["a key", "first\nsecond"])
def test_file_that_is_no_log_is_not_changed(path, content):
    """A file that is no log is an error, and its last line is not dropped as a truncated one."""
    path.write_text(content)

    with pytest.raises(ValueError, match="line 1: expected an interval, got"):
        IntervalLog(path)

    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("beginning", ["", '"StartTimestamp","Interval_Length"\n', "#[Histogram log for"])
def test_log_with_any_header_is_continued(path, beginning):
    """A log with the header of another library, or of a process that was stopped in its first write, is continued."""
    path.write_text(beginning)

    with IntervalLog(path) as log:
        log.write(LatencyHistogram(), start_s=1.0, end_s=2.0)

    assert [(it.start_s, it.end_s) for it in read_interval_log(path)] == [(1.0, 2.0)]


@pytest.mark.parametrize("before", [0, 1], ids=["new", "continued"])
def test_failed_write_leaves_the_file_unchanged(path, before):
    """An interval whose write fails is in no later write, so a caller that writes it again has it once."""
    with IntervalLog(path) as log:
        for second in range(before):
            log.write(filled(second), start_s=START_S + second, end_s=START_S + second + 1)
        as_it_was = path.read_bytes()

        with files_limited_to(len(as_it_was) + 300), pytest.raises(OSError, match="File too large"):
            log.write(filled(7, 5000), start_s=START_S + 7, end_s=START_S + 8)

        assert path.read_bytes() == as_it_was
        log.write(filled(8), start_s=START_S + 8, end_s=START_S + 9)
    assert [it.start_s - START_S for it in read_interval_log(path)] == [*range(before), 8]


def test_a_log_that_cannot_be_written_is_closed(path):
    """If the disk is full when a log is closed, the log is closed nevertheless, and no descriptor stays open."""
    log = IntervalLog(path)

    with files_limited_to(10), pytest.raises(OSError, match="File too large"):
        log.close()

    log.close()
    assert path.read_bytes() == b""


def test_path_of_wrong_type_is_named():
    with pytest.raises(TypeError, match=r"^path: expected a path, got None"):
        IntervalLog(None)
