"""LatencyHistogram: every duration counted, any percentile to a guaranteed relative error, in constant memory.

The layout, its error bound and its cost are explained in ``_histogram_cy``, whose compiled state this class extends
without overriding what runs once a request. What is here works on snapshots: arithmetic over one consistent copy.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_duration, check_instance, expected
from streaminfer.telemetry.histograms._histogram_cy import HistogramState

__all__ = ["FAR_NS", "LONGEST_UNDER_LOCK", "LatencyHistogram", "lowest_at", "reals"]

LONGEST_UNDER_LOCK = 4096  # about 12 µs in compiled code; in between, other threads can run
FAR_NS = 2**62
_MOST_DIGITS = 5
_TOO_MANY = 2**63  # for the C integers that count
# each public method is one step for other threads
_OPERATIONS = [name for name, method in vars(HistogramState).items() if callable(method) and not name.startswith("_")]


if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from streaminfer.telemetry.histograms._histogram_cy import HistogramState as _State
else:
    _State = thread_safe(HistogramState, _OPERATIONS)


class LatencyHistogram(_State):
    """Counts durations in HdrHistogram's layout, in nanoseconds.

    A quantile is never too low, and too high by at most ``10**-significant_digits`` of itself or by ``lowest_s``,
    whichever is more; the extremes are exact to the nanosecond. Memory is fixed: 192 KiB at the defaults.

    Args:
        lowest_s: durations below it are not told apart; at least 1e-9, rounded down to a power of two nanoseconds.
        highest_s: longer durations, infinity included, are counted as this one and in ``clamped``; at least twice
            ``lowest_s``.
        significant_digits: decimal digits that are kept of a duration, 1 to 5; each digit costs ten times the memory.

    Attributes:
        count: how many durations were recorded.
        clamped: how many of them were longer than ``highest_s``. A text of :meth:`encode` does not carry it.

    Raises:
        ValueError: an impossible layout.
        TypeError: not numbers.

    Threads: any number may record and read at once, and no record is lost; each call sees or makes one consistent
    state. In the compiled build under the interpreter lock that costs nothing: the methods run without giving it up.
    Run uncompiled, or on an interpreter without that lock, each call takes a lock of the histogram.

    Errors: what is recorded must be a real number (``True`` is a TypeError, so is text) that is neither NaN nor
    negative (ValueError); otherwise nothing is recorded.

    Example:
        >>> histogram = LatencyHistogram()
        >>> for milliseconds in range(1, 101):
        ...     histogram.record(milliseconds / 1000)
        >>> histogram
        LatencyHistogram(count=100, p50=50 ms, p99=99.02 ms, p99.9=100 ms, max=100 ms)
    """

    __slots__ = ("__weakref__",)

    def __init__(self, *, lowest_s: float = 1e-6, highest_s: float = 3600.0, significant_digits: int = 3) -> None:
        lowest_ns = round(check_duration("lowest_s", lowest_s, positive=True) * 1e9)
        highest_ns = round(check_duration("highest_s", highest_s, positive=True) * 1e9)
        digits = check_count("significant_digits", significant_digits)
        if lowest_ns < 1:
            raise ValueError(expected("lowest_s", "at least one nanosecond (1e-9)", lowest_s))
        if not 2 * lowest_ns <= highest_ns < FAR_NS:
            raise ValueError(expected("highest_s", "at least twice lowest_s, and below 2^62 nanoseconds", highest_s))
        if digits > _MOST_DIGITS:
            raise ValueError(
                expected("significant_digits", f"a whole number from 1 to {_MOST_DIGITS}", significant_digits)
            )
        super().__init__(lowest_ns, highest_ns, digits)

    def add_counts(self, counts: Any, minimum_ns: int, maximum_ns: int, clamped: int) -> None:
        """Adds counts of one's own layout; see the state's method.

        Args:
            counts: shape (counts_length,), int64, any object with a buffer.
            minimum_ns: the shortest duration among them, nanoseconds.
            maximum_ns: the longest.
            clamped: how many were longer than ``highest_s``.
        """
        # read through a memoryview the numbers are Python's, also where the state runs uncompiled
        super().add_counts(memoryview(counts), minimum_ns, maximum_ns, clamped)

    def record_many(self, seconds: ArrayLike) -> None:
        """Counts every duration of an array, or none.

        More than 4,096 are counted apart, in parts between which other threads can run, and then added in one step.

        Args:
            seconds: any shape, a real numeric dtype.

        Raises:
            ValueError: one of them is NaN or negative.
            TypeError: not real numbers, or booleans.
        """
        values = reals("seconds", seconds).ravel()
        if values.size <= LONGEST_UNDER_LOCK:
            self.record_each(values)
            return
        if not values.min() >= 0.0:
            wrong = int(np.argmin(values >= 0.0))
            raise ValueError(expected(f"seconds[{wrong}]", "a number of seconds ≥ 0", float(values[wrong])))
        counted = self._of_layout(*self._layout())
        for start in range(0, values.size, LONGEST_UNDER_LOCK):
            counted.record_each(values[start : start + LONGEST_UNDER_LOCK])
        self.add_counts(*counted.snapshot())

    def quantiles(self, qs: ArrayLike) -> NDArray[np.float64]:
        """The quantile of each share, all of one moment; see :meth:`quantile`.

        Args:
            qs: shares from 0 to 1, any shape.

        Returns:
            Seconds, float64, of the same shape; NaN while empty.

        Raises:
            ValueError: NaN or outside 0 to 1.
            TypeError: not real numbers.
        """
        shares = reals("qs", qs)
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
        """The mean in seconds of the parts' mid points, as HdrHistogram's, but within the extremes; NaN while empty."""
        return self._moments()[0]

    @property
    def stddev(self) -> float:
        """The standard deviation in seconds of the parts' mid points, as HdrHistogram's; NaN while empty."""
        return self._moments()[1]

    def merge(self, other: LatencyHistogram) -> None:
        """Adds all that another histogram counted; ``histogram.merge(histogram)`` doubles it.

        Where layouts differ, each of the other's parts is recorded at the highest duration it stands for. Into a layout
        of no more digits and no lower ``lowest_s`` the result is what recording there would have given; into a finer
        one the quantiles keep the other's error. Durations above this ``highest_s`` are clamped and counted.

        Args:
            other: unchanged.

        Raises:
            TypeError: not a LatencyHistogram.
            ValueError: both together have 2^63 durations or more.
        """
        check_instance("other", other, lambda value: isinstance(value, LatencyHistogram), "a LatencyHistogram")
        if self.count + other.count >= _TOO_MANY:
            raise ValueError(expected("other", f"less than 2^63 durations with the {self.count} here", other.count))
        counts, minimum_ns, maximum_ns, clamped = other.snapshot()
        if maximum_ns < 0:
            return
        if self._layout() == other._layout():
            self.add_counts(counts, minimum_ns, maximum_ns, clamped)
            return
        index, there = _filled(counts)
        clamped = max(clamped, int(there[other._lowest_at(index) > self.highest_ns].sum()))
        nanoseconds = np.minimum(other._lowest_at(index + 1) - 1, min(maximum_ns, self.highest_ns))
        here = np.zeros(self.counts_length, np.int64)
        parts = np.searchsorted(self._lowest_at(np.arange(self.counts_length)), nanoseconds, side="right") - 1
        np.add.at(here, parts, there)
        self.add_counts(here, min(minimum_ns, self.highest_ns), min(maximum_ns, self.highest_ns), clamped)

    def copy(self) -> LatencyHistogram:
        """An independent histogram of the same layout and counts, of one moment."""
        twin = self._of_layout(*self._layout())
        twin.add_counts(*self.snapshot())
        return twin

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """Return what was counted after ``earlier``, a copy of this histogram; its extremes are those of its parts.

        Raises:
            TypeError: not a LatencyHistogram.
            ValueError: of another layout, or one that counted something that this one did not.
        """
        check_instance("earlier", earlier, lambda value: isinstance(value, LatencyHistogram), "a LatencyHistogram")
        now, _, maximum_ns, clamped = self.snapshot()
        before, _, _, clamped_before = earlier.snapshot()
        if self._layout() == earlier._layout():
            counts = np.frombuffer(now, np.int64) - np.frombuffer(before, np.int64)
            if counts.min(initial=0) >= 0 and clamped >= clamped_before:
                return self._of_counts(self._layout(), counts, maximum_ns, clamped - clamped_before)
        raise ValueError(expected("earlier", "a copy of this histogram", earlier))

    def encode(self) -> str:
        """The counts as HdrHistogram's V2 compressed text in base64, unit nanoseconds: its libraries and tools read it.

        Exact extremes and ``clamped`` are not part of that format.
        """
        encoding = _encoding()
        text: str = encoding.encode(*self._layout(), np.frombuffer(self.snapshot()[0], np.int64))
        return text

    @classmethod
    def decode(cls, text: str | bytes) -> LatencyHistogram:
        """A histogram from HdrHistogram's compressed text of any library; its values are taken as nanoseconds.

        Versions V2, which :meth:`encode` writes, V1 and V0 are read. The extremes are those of its first and last part.

        Raises:
            ValueError: not such a text, or a layout that cannot be held.
            TypeError: neither str nor bytes.
        """
        histogram, counts = cls._read(text)
        return cls._of_counts(histogram._layout(), counts, FAR_NS, 0)

    def to_dict(self) -> dict[str, float]:
        """Return count, clamped and, in seconds, extremes, moments and percentiles; of one moment, NaN while empty."""
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
        """Draws latency by percentile, the percentiles on a logarithmic axis of nines.

        Args:
            ax: a matplotlib ``Axes`` to draw on; several histograms may share one. ``None``: a new figure.
            label: of the line, for the legend; empty: the line has none.

        Returns:
            The axes.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        from streaminfer.telemetry.histograms import percentile_plot as plot  # noqa: PLC0415 - only who draws loads it

        counts, _, maximum_ns, _ = self.snapshot()
        index, there = _filled(counts)
        values_s = np.minimum(self._lowest_at(index + 1) - 1, maximum_ns) / 1e9
        return plot.plot_percentiles(ax, values_s, there, label)

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
        """An empty one, its layout given in whole nanoseconds as other libraries do."""
        histogram = cls.__new__(cls)
        _State.__init__(histogram, lowest_ns, highest_ns, significant_digits)
        return histogram

    @classmethod
    def _read(cls, text: str | bytes) -> tuple[LatencyHistogram, NDArray[np.int64]]:
        """Return an empty one of the layout of a text, and the counts of the text."""
        encoding = _encoding()
        header = encoding.decode_header(text)
        histogram = cls._of_layout(header.lowest_ns, header.highest_ns, header.significant_digits)
        return histogram, encoding.decode_counts(header, histogram.counts_length)

    @classmethod
    def _of_counts(
        cls, layout: tuple[int, int, int], counts: NDArray[np.int64], at_most_ns: int, clamped: int
    ) -> LatencyHistogram:
        """One of counts whose extremes are not known better than their parts, and a bound."""
        histogram = cls._of_layout(*layout)
        filled = np.flatnonzero(counts)
        if filled.size:
            lowest, above = histogram._lowest_at(filled[[0, -1]] + np.array([0, 1])).tolist()
            histogram.add_counts(counts, lowest, min(above - 1, at_most_ns), clamped)
        return histogram

    def _lowest_at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lowest duration in nanoseconds that each part stands for; the highest is that of the next, less one."""
        return lowest_at(index, self.unit_magnitude, self.half_magnitude)

    def _moments(self) -> tuple[float, float]:
        counts, minimum_ns, maximum_ns, _ = self.snapshot()
        if maximum_ns < 0:
            return math.nan, math.nan
        index, there = _filled(counts)
        weights = there / there.sum()
        lowest = self._lowest_at(index)
        middle = (lowest + ((self._lowest_at(index + 1) - lowest) >> 1)).astype(np.float64)
        mean = float(weights @ middle)
        deviation = math.sqrt(float(weights @ (middle - mean) ** 2))
        return min(max(mean, minimum_ns), maximum_ns) / 1e9, deviation / 1e9


def _filled(counts: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indexes of the parts that are not empty, and their counts."""
    dense = np.frombuffer(counts, np.int64)
    index = np.flatnonzero(dense)
    return index, dense[index]


def lowest_at(index: NDArray[np.int64], unit_magnitude: int, half_magnitude: int) -> NDArray[np.int64]:
    """Return the lowest duration in nanoseconds that each part of a layout stands for."""
    half = 1 << half_magnitude
    bucket = (index >> half_magnitude) - 1
    part = np.where(bucket < 0, index, (index & (half - 1)) + half)
    lowest: NDArray[np.int64] = part << (np.maximum(bucket, 0) + unit_magnitude)
    return lowest


def _restored(
    cls: type[LatencyHistogram], text: str, minimum_ns: int, maximum_ns: int, clamped: int
) -> LatencyHistogram:
    """Restore what pickling adds to the text: exact extremes and the number clamped."""
    histogram, counts = cls._read(text)
    histogram.add_counts(counts, minimum_ns, maximum_ns, clamped)
    return histogram


def reals(name: str, numbers: ArrayLike) -> NDArray[np.float64]:
    """Return real numbers as a C-contiguous array; the error for others names the argument."""
    values = np.asarray(numbers)
    if values.dtype.kind not in "fiu":
        raise TypeError(expected(name, "real numbers", numbers))
    return np.asarray(values, np.float64, order="C")


def _encoding() -> ModuleType:
    """Return the module that encodes and decodes, which the package's import does not load."""
    from streaminfer.telemetry.histograms import hdr_encoding  # noqa: PLC0415 - see above

    return hdr_encoding
