"""`RollingHistogram`: a latency histogram over a recent window, such as the last minute.

``_rolling_cy`` explains the ring of slices and what a reader sees of it. The class here extends that compiled state,
without overriding methods that run once per request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.locking import public_methods, thread_safe
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_duration_ns, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.telemetry.histograms._rolling_cy import RollingState
from streaminfer.telemetry.histograms.latency_histogram import FAR_NS, LONGEST_UNDER_LOCK, LatencyHistogram

__all__ = ["RollingHistogram"]

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms._rolling_cy import RollingState as _State
else:
    # each public method is atomic for other threads, and so is a change of the clock
    _State = thread_safe(RollingState, (*public_methods(RollingState), "_use_clock"))


class RollingHistogram(_State, StackClock):
    """Histogram of recent durations; it drops old ones, a time slice at once.

    A duration stays for at least ``window_s * (1 - 1 / slices)`` seconds and at most ``window_s``; it disappears
    together with its whole slice. There is no background work. Long idle times and clocks that jump ahead do no harm;
    if the clock jumps back, time stands still until it has caught up. Each slice, and one histogram more for readers,
    takes the memory of a histogram: 1.3 MiB at the defaults, a seventh of it with ``significant_digits=2``.

    Args:
        window_s: seconds after which a duration has disappeared, > 0.
        slices: number of slices of the window, ≥ 1; with 1 all durations disappear at once.
        clock: returns monotonic nanoseconds; ``None``: the system's monotonic clock, read in C.
        lowest_s: as for :class:`LatencyHistogram`.
        highest_s: as for :class:`LatencyHistogram`.
        significant_digits: as for :class:`LatencyHistogram`.

    Raises:
        ValueError: the window or the layout is impossible.
        TypeError: an argument is not a number, or the clock cannot be called.

    Threads: any number of threads may record and read at once. No record is lost, no recorder waits for a lock, and a
    read sees all slices at one moment. In an uncompiled run, or without an interpreter lock, each call takes a lock of
    the histogram.

    Errors: a duration must be a real number, or a TypeError is raised (also for ``True`` and for text). NaN and
    negative numbers raise a ValueError. After an error nothing is recorded.

    Example:
        >>> from streaminfer.testing import FakeClock
        >>> clock = FakeClock()
        >>> histogram = RollingHistogram(window_s=60.0, clock=clock)
        >>> histogram.record(0.5)
        >>> clock.advance(30.0)
        >>> histogram.record(0.1)
        >>> histogram.count, histogram.quantile(1.0)
        (2, 0.5)
        >>> clock.advance(30.0)
        >>> histogram.count, histogram.quantile(1.0)
        (1, 0.1)
    """

    __slots__ = ("_clock_given", "_layout", "window_s")

    def __init__(
        self,
        *,
        window_s: float = 60.0,
        slices: int = 6,
        clock: Callable[[], int] | None = None,
        lowest_s: float = 1e-6,
        highest_s: float = 3600.0,
        significant_digits: int = 3,
    ) -> None:
        window_ns = check_duration_ns("window_s", window_s, longest_ns=FAR_NS)
        slices = check_count("slices", slices)
        clock = self._accept_clock(clock)
        if not slices <= window_ns < FAR_NS:
            raise ValueError(
                expected("window_s", "at least a nanosecond for each slice, and below 2^62 of them", window_s)
            )
        self.window_s = float(window_s)
        self._layout = LatencyHistogram(
            lowest_s=lowest_s, highest_s=highest_s, significant_digits=significant_digits
        )._layout()
        super().__init__(clock, slices, -(-window_ns // slices), *self._layout)

    def record_many(self, seconds: ArrayLike) -> None:
        """Count every duration of an array in the present slice, or none; see :meth:`LatencyHistogram.record_many`.

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
        counted = LatencyHistogram._of_layout(*self._layout)
        counted.record_many(values)
        self.add_counts(*counted.snapshot())

    def snapshot(self) -> LatencyHistogram:
        """Return an independent histogram of the durations in the window, at one moment."""
        histogram = LatencyHistogram._of_layout(*self._layout)
        histogram.add_counts(*self.merged_counts())
        return histogram

    def quantiles(self, qs: ArrayLike) -> NDArray[np.float64]:
        """Return the quantile of each share, all at the same moment; see :meth:`LatencyHistogram.quantiles`."""
        return self.snapshot().quantiles(qs)

    @property
    def count(self) -> int:
        """Number of durations in the window."""
        return self.live_count()

    @property
    def min(self) -> float:
        """The shortest duration of the window in seconds; NaN while it is empty."""
        return self.snapshot().min

    @property
    def max(self) -> float:
        """The longest duration of the window in seconds; NaN while it is empty."""
        return self.snapshot().max

    @property
    def mean(self) -> float:
        """The mean over the window in seconds; NaN while it is empty."""
        return self.snapshot().mean

    def plot(self, ax: Any = None) -> Any:
        """Draw latency by percentile over the window; see :meth:`LatencyHistogram.plot`."""
        return self.snapshot().plot(ax)

    def __repr__(self) -> str:
        details = repr(self.snapshot()).partition("(")[2]
        return f"{type(self).__name__}(last {format_duration(self.window_s)}, {details}"

    def _repr_html_(self) -> str:
        return self.snapshot()._repr_html_()
