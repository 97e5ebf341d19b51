"""Interval logs in HdrHistogram's text format, for its tools and libraries.

::

    #[Histogram log format version 1.3]
    #[StartTime: 1700000000.000 (seconds since epoch), Tue Nov 14 22:13:20 2023]
    "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
    1700000000.000,1.000,12.345,HISTFAAA...
    Tag=large,1700000001.000,1.000,9.876,HISTFAAA...

A start is in seconds since the epoch, or since ``#[BaseTime: ...]``. Without a base time, starts more than a year
before ``StartTime`` count from ``StartTime``. ``Interval_Max`` is the largest value in milliseconds, for human readers.
Other lines that begin with ``#`` are comments. Source: ``HistogramLogWriter``, ``HistogramLogReader`` and
``HistogramLogScanner`` of HdrHistogram.
"""

import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, Self

import attrs

from streaminfer._internal.validation import check_instance, check_number, check_path, expected
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

__all__ = ["Interval", "IntervalLog", "format_interval", "merge_interval_logs", "merge_widened", "read_interval_log"]

_HEAD = "#[Histogram log format version 1.3]\n"
_ABSOLUTE = "#[BaseTime: 0.000 (seconds since epoch)]\n"
_LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
_NUMBER = "([-+0-9.eE]+)"
_ORIGIN = re.compile(rf"#\[(StartTime|BaseTime): *{_NUMBER}")
_LINE = re.compile(rf"(?:Tag=([^,]*),)?{_NUMBER},{_NUMBER},{_NUMBER},(HIST\S+)$")
_YEAR_S = 365 * 86400.0
_LONGEST_LINE = 1 << 22
_LATEST_DATE_S = 32_503_680_000.0  # the year 3000, the last for `time.ctime` on every platform
_NOT_IN_TAG = re.compile(r"[,\s]")


@attrs.frozen
class Interval:
    """A line of an interval log.

    Attributes:
        start_s: start of the interval, in seconds since the epoch.
        end_s: end of the interval, in seconds since the epoch.
        tag: name of the histogram, if a log has several; otherwise empty.
        histogram: the durations counted in the interval.
    """

    start_s: float
    end_s: float
    tag: str
    histogram: LatencyHistogram


class IntervalLog:
    """Writer of an interval log; :meth:`write` passes each line to the operating system before it returns.

    If a write fails, for example on a full disk, the file stays unchanged.

    Args:
        path: the file. An existing log is continued, for example after a restart of the process.
        comment: comment at the top of a new file, of one or more lines.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file exists and is not an interval log; it stays unchanged.
        TypeError: ``comment`` is not a string.

    ::

        with IntervalLog(path) as log:
            log.write(telemetry.interval().latency, start_s=1700000000.0, end_s=1700000001.0)
    """

    def __init__(self, path: str | os.PathLike[str], *, comment: str = "") -> None:
        check_instance("comment", comment, str, "a string")
        # unbuffered: a buffer would keep what a full disk did not accept, and write it in a later call
        self._file = check_path("path", path).open("ab+", buffering=0)
        try:
            _check_first_line(self._file, path)
            _truncate_torn_line(self._file)
        except BaseException:
            self._file.close()
            raise
        self._comment = comment

    def write(self, histogram: LatencyHistogram, *, start_s: float, end_s: float, tag: str = "") -> None:
        """Append the histogram of an interval.

        Args:
            histogram: histogram of this interval alone, for example from :meth:`Telemetry.interval`.
            start_s: start of the interval, in seconds since the epoch.
            end_s: end of the interval, in seconds since the epoch.
            tag: name of the histogram, if the log has several; without commas and spaces.

        Raises:
            OSError: the file cannot be written.
            TypeError, ValueError: an argument has the wrong type or is out of range.
        """
        self._append(format_interval(histogram, start_s, end_s, tag), start_s)

    def close(self) -> None:
        """Close the file, even if the head of an empty log cannot be written, which raises ``OSError``."""
        if not self._file.closed:
            with self._file:
                self._append("", time.time())

    def _append(self, line: str, first_s: float) -> None:
        """Write a line, after the head if the file is new; write all or nothing."""
        end = self._file.seek(0, os.SEEK_END)
        remaining = memoryview((line if end else self._head(first_s) + line).encode())
        try:
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        except BaseException:
            self._file.truncate(end)
            raise

    def _head(self, first_s: float) -> str:
        """Return the head of a new file; it starts at the first interval, because readers skip older intervals."""
        date = time.ctime(min(first_s, _LATEST_DATE_S))
        comment = "".join(f"#{line}\n" for line in self._comment.splitlines())
        return f"{comment}{_HEAD}#[StartTime: {first_s:.3f} (seconds since epoch), {date}]\n{_ABSOLUTE}{_LEGEND}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def format_interval(histogram: LatencyHistogram, start_s: float, end_s: float, tag: str = "") -> str:
    """Return the line of an interval; see :meth:`IntervalLog.write`."""
    expectation = "a LatencyHistogram"
    check_instance("histogram", histogram, LatencyHistogram, expectation)
    start_s = check_number("start_s", start_s, "seconds since the epoch ≥ 0", lambda it: 0.0 <= it < float("inf"))
    end_s = check_number("end_s", end_s, f"seconds ≥ start_s={start_s!r}", lambda it: start_s <= it < float("inf"))
    check_instance("tag", tag, str, "a string")
    if _NOT_IN_TAG.search(tag):
        raise ValueError(expected("tag", "a text without commas and spaces", tag))
    largest_ms = histogram.max * 1e3 if histogram.count else 0.0
    begin = f"Tag={tag}," if tag else ""
    return f"{begin}{start_s:.3f},{end_s - start_s:.3f},{largest_ms:.3f},{histogram.encode()}\n"


def read_interval_log(
    path: str | os.PathLike[str], *, since_s: float = -math.inf, until_s: float = math.inf, tag: str | None = None
) -> Iterator[Interval]:
    """Read an interval log of ours, or of any HdrHistogram library.

    Args:
        path: the file.
        since_s: only intervals that start at this time or later, in seconds since the epoch.
        until_s: only intervals that start before this time.
        tag: only intervals with this tag; ``""``: only intervals without a tag; ``None``: all.

    Yields:
        The intervals in the order of the file. Values are taken as nanoseconds. An incomplete last line is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an interval log; the message names the file and the line.
    """
    since_s, until_s = (
        check_number(name, value, "seconds since the epoch", lambda it: not math.isnan(it))
        for name, value in (("since_s", since_s), ("until_s", until_s))
    )
    origins: dict[str, float] = {}
    with check_path("path", path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.strip()
                if (stated := _ORIGIN.match(text)) is not None:
                    origins[stated[1]] = float(stated[2])
                if not text or text[0] in '#"':
                    continue
                parts = _parts(text)
                start_s, interval_tag = _absolute_s(float(parts[2]), origins), parts[1] or ""
                if since_s <= start_s < until_s and tag in {None, interval_tag}:
                    yield Interval(start_s, start_s + float(parts[3]), interval_tag, LatencyHistogram.decode(parts[5]))
            except ValueError as error:
                if line.endswith("\n"):
                    raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error


def _parts(text: str) -> re.Match[str]:
    """Return the fields of an interval."""
    parts = _LINE.match(text)
    if parts is None:
        raise ValueError(f"expected an interval, got {text[:60]!r}")
    return parts


def _absolute_s(logged_s: float, origins: dict[str, float]) -> float:
    """Return an instant in seconds since the epoch; ``origins`` are those that the comments of the log state."""
    if "BaseTime" not in origins:
        start_time_s = origins.get("StartTime", 0.0)
        origins["BaseTime"] = start_time_s if logged_s < start_time_s - _YEAR_S else 0.0
    return logged_s + origins["BaseTime"]


def _check_first_line(file: Any, path: str | os.PathLike[str]) -> None:
    """Reject a file that is not a log, before anything in it is changed; a torn first write begins with a comment."""
    file.seek(0)
    first = file.read(_LONGEST_LINE).partition(b"\n")
    first = b"".join(first[:2]).decode(errors="replace")
    is_line = first.endswith("\n") and (first[0] == '"' or not first.strip() or _LINE.match(first.strip()))
    if first and first[0] != "#" and not is_line:
        raise ValueError(f"{os.fspath(path)}, line 1: expected an interval, got {first[:60]!r}")


def _truncate_torn_line(file: Any) -> None:
    """Remove an incomplete last line that an earlier process left."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _LONGEST_LINE, 0))
    tail = file.read()
    torn_bytes = len(tail) - tail.rfind(b"\n") - 1
    if torn_bytes:
        file.truncate(size - torn_bytes)


def merge_interval_logs(
    *paths: str | os.PathLike[str], since_s: float = -math.inf, until_s: float = math.inf
) -> dict[str, LatencyHistogram]:
    """Return the merged histograms of several logs by tag, for one tail over several processes or hosts.

    If the layouts of a tag differ, for example because the writer's histograms grow, the result has the widest range
    and the most digits.

    Args:
        *paths: the logs.
        since_s: as for :func:`read_interval_log`.
        until_s: as for :func:`read_interval_log`.

    Raises:
        OSError, ValueError: as for :func:`read_interval_log`.
    """
    merged: dict[str, LatencyHistogram] = {}
    for path in paths:
        for interval in read_interval_log(path, since_s=since_s, until_s=until_s):
            before = merged.get(interval.tag)
            merged[interval.tag] = interval.histogram if before is None else merge_widened(before, interval.histogram)
    return merged


def merge_widened(merged: LatencyHistogram, other: LatencyHistogram) -> LatencyHistogram:
    """Merge ``other`` into ``merged`` and return it, or a new histogram if its layout is too narrow."""
    ours, theirs = merged._layout(), other._layout()
    widest = min(ours[0], theirs[0]), max(ours[1], theirs[1]), max(ours[2], theirs[2])
    if widest != ours:
        narrow, merged = merged, LatencyHistogram._of_layout(*widest)
        merged.merge(narrow)
    merged.merge(other)
    return merged
