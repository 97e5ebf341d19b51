"""`LatencyHistogram`: counts every duration, with any percentile to a guaranteed relative error, in constant memory.

``_histogram_cy`` explains the layout, its error bound and its cost. The class here extends that compiled state, without
overriding methods that run once per request. Its own methods compute on snapshots, each one consistent copy.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance, expected
from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["FAR_NS", "LONGEST_UNDER_LOCK", "LatencyHistogram", "lowest_at"]

LONGEST_UNDER_LOCK = 4096  # durations per step: about 12 µs in compiled code; other threads can run between steps
FAR_NS = 2**62
_MAX_DIGITS = 5
_COUNT_LIMIT = 2**63  # limit of the C integers of the counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from streaminfer.telemetry.histograms._histogram_cy import HistogramState as _State
else:
    _State = thread_safe(HistogramState)


class LatencyHistogram(_State):
    """Counts durations in HdrHistogram's layout, in nanoseconds.

    A quantile is never too low, and too high by at most ``10**-significant_digits`` of itself or by ``lowest_s``,
    whichever is more; the extremes are exact to the nanosecond. Memory is fixed: 192 KiB at the defaults.

    Args:
        lowest_s: resolution of the shortest durations; at least 1e-9, rounded down to a power of two nanoseconds.
        highest_s: longer durations, infinity included, are counted as this one and in ``clamped``; at least twice
            ``lowest_s``.
        significant_digits: precision of a duration in decimal digits, 1 to 5; each digit costs ten times the memory.

    Attributes:
        count: number of durations recorded.
        clamped: number of durations that were longer than ``highest_s``; :meth:`encode` does not preserve it.

    Raises:
        ValueError: the layout is impossible.
        TypeError: an argument is not a number.

    Threads: any number of threads may record and read at once. No record is lost, and each call sees one consistent
    state. In the compiled build this costs nothing, because the methods run under the interpreter lock without
    releasing it. In an uncompiled run, or without an interpreter lock, each call takes a lock of the histogram.

    Errors: a duration must be a real number, or a TypeError is raised (also for ``True`` and for text). NaN and
    negative numbers raise a ValueError. After an error nothing is recorded.

    Example:
        >>> histogram = LatencyHistogram()
        >>> for milliseconds in range(1, 101):
        ...     histogram.record(milliseconds / 1000)
        >>> histogram
        LatencyHistogram(count=100, p50=50 ms, p99=99.02 ms, p99.9=100 ms, max=100 ms)
    """

    __slots__ = ("__weakref__",)

    def __init__(self, *, lowest_s: float = 1e-6, highest_s: float = 3600.0, significant_digits: int = 3) -> None:
        lowest_ns = check_duration_ns("lowest_s", lowest_s, longest_ns=FAR_NS)
        highest_ns = check_duration_ns("highest_s", highest_s, longest_ns=FAR_NS)
        digits = check_count("significant_digits", significant_digits)
        if lowest_ns < 1:
            raise ValueError(expected("lowest_s", "at least one nanosecond (1e-9)", lowest_s))
        if not 2 * lowest_ns <= highest_ns < FAR_NS:
            raise ValueError(expected("highest_s", "at least twice lowest_s, and below 2^62 nanoseconds", highest_s))
        if digits > _MAX_DIGITS:
            raise ValueError(
                expected("significant_digits", f"a whole number from 1 to {_MAX_DIGITS}", significant_digits)
            )
        super().__init__(lowest_ns, highest_ns, digits)

    def add_counts(self, counts: Any, minimum_ns: int, maximum_ns: int, clamped: int) -> None:
        """Add counts of another histogram with the same layout.

        Args:
            counts: shape (counts_length,), int64, any object with a buffer, none negative.
            minimum_ns: the shortest of the durations, in nanoseconds.
            maximum_ns: the longest of the durations; negative if there are none.
            clamped: number of durations that were longer than ``highest_s``.
        """
        # elements of a memoryview are Python integers, which the uncompiled state needs
        super().add_counts(memoryview(counts), minimum_ns, maximum_ns, clamped)

    def record_many(self, seconds: ArrayLike) -> None:
        """Count every duration of an array, or none on an error.

        More than 4,096 durations are first counted in a separate histogram, in steps between which other threads can
        run, and then added at once.

        Args:
            seconds: any shape, a real numeric dtype.

        Raises:
            ValueError: a duration is NaN or negative.
            TypeError: the array has booleans or other values that are not real numbers.
        """
        values = real_array("seconds", seconds).ravel()
        if values.size <= LONGEST_UNDER_LOCK:
            self.record_each(values)
            return
        if not values.min() >= 0.0:
            invalid = int(np.argmin(values >= 0.0))
            raise ValueError(expected(f"seconds[{invalid}]", "a number of seconds ≥ 0", float(values[invalid])))
        counted = self._of_layout(*self._layout())
        for start in range(0, values.size, LONGEST_UNDER_LOCK):
            counted.record_each(values[start : start + LONGEST_UNDER_LOCK])
        self.add_counts(*counted.snapshot())

    def quantiles(self, qs: ArrayLike) -> NDArray[np.float64]:
        """Return the quantile of each share, all at the same moment; see :meth:`quantile`.

        Args:
            qs: shares from 0 to 1, any shape.

        Returns:
            Seconds, float64, in the same shape; NaN while empty.

        Raises:
            ValueError: a share is NaN or outside 0 to 1.
            TypeError: ``qs`` has values that are not real numbers.
        """
        shares = real_array("qs", qs)
        if not np.all((shares >= 0.0) & (shares <= 1.0)):
            raise ValueError(expected("qs", "shares from 0 to 1", qs))
        seconds = np.empty(shares.size)
        self.quantiles_into(shares.ravel(), seconds)
        return seconds.reshape(shares.shape)

    @property
    def min(self) -> float:
        """The shortest duration in seconds, exact to the nanosecond; NaN while empty."""
        minimum_ns = self.minimum_ns
        return minimum_ns / 1e9 if minimum_ns < FAR_NS else math.nan

    @property
    def max(self) -> float:
        """The longest duration in seconds, exact to the nanosecond; NaN while empty."""
        maximum_ns = self.maximum_ns
        return maximum_ns / 1e9 if maximum_ns >= 0 else math.nan

    @property
    def mean(self) -> float:
        """Mean of the parts' midpoints in seconds, as in HdrHistogram, but within the extremes; NaN while empty."""
        return self._moments()[0]

    @property
    def stddev(self) -> float:
        """Standard deviation in seconds over the midpoints of the parts, as in HdrHistogram; NaN while empty."""
        return self._moments()[1]

    def merge(self, other: LatencyHistogram) -> None:
        """Add all counts of another histogram; ``histogram.merge(histogram)`` doubles the counts.

        If the layouts differ, the durations of each part of ``other`` are counted as the part's highest duration. If
        this layout has no more digits and no lower ``lowest_s``, the result is the same as recording here directly. If
        it is finer, the quantiles keep the error of ``other``. Durations above this ``highest_s`` are clamped.

        Args:
            other: the other histogram, which stays unchanged.

        Raises:
            TypeError: ``other`` is not a LatencyHistogram.
            ValueError: both together have 2^63 durations or more.
        """
        check_instance("other", other, LatencyHistogram, "a LatencyHistogram")
        if self.count + other.count >= _COUNT_LIMIT:
            raise ValueError(expected("other", f"less than 2^63 durations with the {self.count} here", other.count))
        counts, minimum_ns, maximum_ns, clamped = other.snapshot()
        if maximum_ns < 0:
            return
        if self._layout() == other._layout():
            self.add_counts(counts, minimum_ns, maximum_ns, clamped)
            return
        index, other_counts = _nonzero(counts)
        clamped = max(clamped, int(other_counts[other._lowest_at(index) > self.highest_ns].sum()))
        nanoseconds = np.minimum(other._lowest_at(index + 1) - 1, min(maximum_ns, self.highest_ns))
        own_counts = np.zeros(self.counts_length, np.int64)
        parts = np.searchsorted(self._lowest_at(np.arange(self.counts_length)), nanoseconds, side="right") - 1
        np.add.at(own_counts, parts, other_counts)
        self.add_counts(own_counts, min(minimum_ns, self.highest_ns), min(maximum_ns, self.highest_ns), clamped)

    def copy(self) -> LatencyHistogram:
        """Return an independent histogram with the same layout and counts."""
        duplicate = self._of_layout(*self._layout())
        duplicate.add_counts(*self.snapshot())
        return duplicate

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """Return a histogram of what was counted after ``earlier``, a copy of this histogram.

        The extremes of the result are the bounds of its first and last part.

        Raises:
            TypeError: ``earlier`` is not a LatencyHistogram.
            ValueError: ``earlier`` has another layout, or a higher count than this histogram in a part.
        """
        check_instance("earlier", earlier, LatencyHistogram, "a LatencyHistogram")
        now, _, maximum_ns, clamped = self.snapshot()
        before, _, _, clamped_before = earlier.snapshot()
        if self._layout() == earlier._layout():
            counts = np.frombuffer(now, np.int64) - np.frombuffer(before, np.int64)
            if counts.min(initial=0) >= 0 and clamped >= clamped_before:
                return self._of_counts(self._layout(), counts, maximum_ns, clamped - clamped_before)
        raise ValueError(expected("earlier", "a copy of this histogram", earlier))

    def encode(self) -> str:
        """Return the counts in nanoseconds as HdrHistogram's V2 compressed base64 text, for its libraries and tools.

        The format does not contain the exact extremes and ``clamped``.
        """
        encoding = _encoding()
        text: str = encoding.encode(*self._layout(), np.frombuffer(self.snapshot()[0], np.int64))
        return text

    @classmethod
    def decode(cls, text: str | bytes) -> LatencyHistogram:
        """Return a histogram from the compressed HdrHistogram text of any library, with values in nanoseconds.

        It reads the versions V2, which :meth:`encode` writes, V1 and V0. The extremes are the bounds of the first and
        last part.

        Raises:
            ValueError: ``text`` is not such a text, or its layout is not supported.
            TypeError: ``text`` is neither str nor bytes.
        """
        histogram, counts = cls._read(text)
        return cls._of_counts(histogram._layout(), counts, FAR_NS, 0)

    def to_dict(self) -> dict[str, float]:
        """Return count, clamped and, in seconds, extremes, moments and percentiles, which are NaN while empty."""
        now = self.copy()
        shares = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99, "p999_s": 0.999}
        percentiles = now.quantiles(list(shares.values())).tolist()
        return {
            "count": now.count,
            "clamped": now.clamped,
            "min_s": now.min,
            **dict(zip(shares, percentiles, strict=True)),
            "max_s": now.max,
            "mean_s": now.mean,
            "stddev_s": now.stddev,
        }

    def plot(self, ax: Any = None, *, label: str = "") -> Any:
        """Draw latency by percentile, with the percentiles on a logarithmic axis of nines.

        Args:
            ax: a matplotlib ``Axes`` to draw on; several histograms may share one. ``None``: a new figure.
            label: label of the line in the legend; empty: no label.

        Returns:
            The axes.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        from streaminfer.telemetry.histograms import percentile_plot as plot  # noqa: PLC0415 - only drawing needs it

        counts, _, maximum_ns, _ = self.snapshot()
        index, nonzero = _nonzero(counts)
        values_s = np.minimum(self._lowest_at(index + 1) - 1, maximum_ns) / 1e9
        return plot.plot_percentiles(ax, values_s, nonzero, label)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        return self._layout() == other._layout() and bool(self.snapshot()[0] == other.snapshot()[0])

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __reduce__(self) -> tuple[Any, ...]:
        counts, minimum_ns, maximum_ns, clamped = self.snapshot()
        text = _encoding().encode(*self._layout(), np.frombuffer(counts, np.int64))
        return _restored, (type(self), text, minimum_ns, maximum_ns, clamped)

    def __repr__(self) -> str:
        now = self.copy()
        if now.count == 0:
            return f"{type(self).__name__}(count=0)"
        p50, p99, p999 = now.quantiles([0.5, 0.99, 0.999]).tolist()
        clamped = f", clamped={now.clamped}" if now.clamped else ""
        return (
            f"{type(self).__name__}(count={now.count}, p50={format_duration(p50)}, p99={format_duration(p99)}, "
            f"p99.9={format_duration(p999)}, max={format_duration(now.max)}{clamped})"
        )

    def _repr_html_(self) -> str:
        from streaminfer._internal.display.html_table import html_table  # noqa: PLC0415 - serving does not need it

        now = self.copy()
        rows = [("count", f"{now.count:,}")]
        if now.count:
            shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "max": 1.0}
            seconds = [*now.quantiles(list(shares.values())).tolist(), now.mean, now.stddev]
            names = [*shares, "mean", "standard deviation"]
            rows += [(name, format_duration(value)) for name, value in zip(names, seconds, strict=True)]
        rows.append(("clamped", f"{now.clamped:,}"))
        if not now.count:
            return html_table(rows)
        from streaminfer._internal.display.figures import inline_svg  # noqa: PLC0415 - likewise

        return inline_svg(now.plot, f"Latency by percentile: {now!r}") + html_table(rows)

    def _layout(self) -> tuple[int, int, int]:
        return self.lowest_ns, self.highest_ns, self.significant_digits

    @classmethod
    def _of_layout(cls, lowest_ns: int, highest_ns: int, significant_digits: int) -> LatencyHistogram:
        """Return an empty histogram with a layout in whole nanoseconds, as in other libraries."""
        histogram = cls.__new__(cls)
        _State.__init__(histogram, lowest_ns, highest_ns, significant_digits)
        return histogram

    @classmethod
    def _read(cls, text: str | bytes) -> tuple[LatencyHistogram, NDArray[np.int64]]:
        """Return an empty histogram with the layout of a text, and the counts of the text."""
        encoding = _encoding()
        header = encoding.decode_header(text)
        histogram = cls._of_layout(header.lowest_ns, header.highest_ns, header.significant_digits)
        return histogram, encoding.decode_counts(header, histogram.counts_length)

    @classmethod
    def _of_counts(
        cls, layout: tuple[int, int, int], counts: NDArray[np.int64], at_most_ns: int, clamped: int
    ) -> LatencyHistogram:
        """Return a histogram of counts; its extremes are the bounds of its parts, and at most ``at_most_ns``."""
        histogram = cls._of_layout(*layout)
        nonzero = np.flatnonzero(counts)
        if nonzero.size:
            lowest, above = histogram._lowest_at(nonzero[[0, -1]] + np.array([0, 1])).tolist()
            histogram.add_counts(counts, lowest, min(above - 1, at_most_ns), clamped)
        return histogram

    def _lowest_at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lowest duration of each part in nanoseconds; the highest is the lowest of the next part less 1."""
        return lowest_at(index, self.unit_magnitude, self.half_magnitude)

    def _moments(self) -> tuple[float, float]:
        counts, minimum_ns, maximum_ns, _ = self.snapshot()
        if maximum_ns < 0:
            return math.nan, math.nan
        index, nonzero = _nonzero(counts)
        weights = nonzero / nonzero.sum()
        lowest = self._lowest_at(index)
        middle = (lowest + ((self._lowest_at(index + 1) - lowest) >> 1)).astype(np.float64)
        mean = float(weights @ middle)
        deviation = math.sqrt(float(weights @ (middle - mean) ** 2))
        return min(max(mean, minimum_ns), maximum_ns) / 1e9, deviation / 1e9


def _nonzero(counts: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indexes of the parts that are not empty, and their counts."""
    values = np.frombuffer(counts, np.int64)
    index = np.flatnonzero(values)
    return index, values[index]


def lowest_at(index: NDArray[np.int64], unit_magnitude: int, half_magnitude: int) -> NDArray[np.int64]:
    """Return the lowest duration of each part of a layout, in nanoseconds."""
    half = 1 << half_magnitude
    bucket = (index >> half_magnitude) - 1
    part = np.where(bucket < 0, index, (index & (half - 1)) + half)
    lowest: NDArray[np.int64] = part << (np.maximum(bucket, 0) + unit_magnitude)
    return lowest


def _restored(
    cls: type[LatencyHistogram], text: str, minimum_ns: int, maximum_ns: int, clamped: int
) -> LatencyHistogram:
    """Restore a pickled histogram: the text, plus the exact extremes and ``clamped``."""
    histogram, counts = cls._read(text)
    histogram.add_counts(counts, minimum_ns, maximum_ns, clamped)
    return histogram


def _encoding() -> ModuleType:
    """Return the module that encodes and decodes; importing the package does not load it."""
    from streaminfer.telemetry.histograms import hdr_encoding  # noqa: PLC0415 - see above

    return hdr_encoding
