"""RollingHistogram: a latency histogram of the last minute, say, instead of since the start.

How the ring of slices works, and what a reader sees of it, is explained in ``_rolling_cy``, whose compiled state this
class extends without overriding what runs once a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_duration, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.telemetry.histograms._rolling_cy import RollingState
from streaminfer.telemetry.histograms.latency_histogram import FAR_NS, LONGEST_UNDER_LOCK, LatencyHistogram, reals

__all__ = ["RollingHistogram"]

# each public method is one step for other threads, and so is a change of the clock
_OPERATIONS = [name for name, method in vars(RollingState).items() if callable(method) and not name.startswith("_")]

if TYPE_CHECKING:
    from streaminfer.telemetry.histograms._rolling_cy import RollingState as _State
else:
    _State = thread_safe(RollingState, [*_OPERATIONS, "_take"])


class RollingHistogram(StackClock, _State):
    """Counts durations and forgets them by age.

    A duration stays for at least ``window_s * (1 - 1 / slices)`` seconds and is gone after ``window_s``; in between its
    whole slice goes at once. Nothing runs in the background; long idle times and clocks that jump ahead are fine, and
    a clock that jumps back stands still. Each slice, and one more for readers, takes a histogram's memory: 1.3 MiB at
    the defaults, a seventh of it with ``significant_digits=2``.

    Args:
        window_s: seconds after which a duration is forgotten, > 0.
        slices: parts in which it is forgotten, ≥ 1; with 1 everything is forgotten at once.
        clock: returns monotonic nanoseconds; ``None``: the system's, read in C.
        lowest_s: the precision, as of :class:`LatencyHistogram`.
        highest_s: the same.
        significant_digits: the same.

    Raises:
        ValueError: an impossible window or layout.
        TypeError: not numbers, or a clock that cannot be called.

    Threads: any number may record and read at once; no record is lost, no recorder waits for a lock, and a read sees
    all slices at one moment. Run uncompiled, or on an interpreter without its lock, each call takes a lock of the
    histogram.

    Errors: what is recorded must be a real number (``True`` is a TypeError, so is text) that is neither NaN nor
    negative (ValueError); otherwise nothing is recorded.

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
        window_ns = round(check_duration("window_s", window_s, positive=True) * 1e9)
        check_count("slices", slices)
        self._accept_clock(clock)
        if not slices <= window_ns < FAR_NS:
            raise ValueError(
                expected("window_s", "at least a nanosecond for each slice, and below 2^62 of them", window_s)
            )
        self.window_s = float(window_s)
        self._layout = LatencyHistogram(
            lowest_s=lowest_s, highest_s=highest_s, significant_digits=significant_digits
        )._layout()
        super().__init__(clock, slices, -(-window_ns // slices), *self._layout)

    def _use_clock(self, clock: Callable[[], int]) -> None:
        self._take(clock)  # time goes on from where it stands

    def record_many(self, seconds: ArrayLike) -> None:
        """Counts every duration of an array in the present slice, or none; see :meth:`LatencyHistogram.record_many`.

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
        counted = LatencyHistogram._of_layout(*self._layout)
        counted.record_many(values)
        self.add_counts(*counted.snapshot())

    def snapshot(self) -> LatencyHistogram:
        """A histogram of its own of what the window holds, of one moment."""
        histogram = LatencyHistogram._of_layout(*self._layout)
        histogram.add_counts(*self.merged_counts())
        return histogram

    def quantiles(self, qs: ArrayLike) -> NDArray[np.float64]:
        """The quantile of each share, all of one moment; see :meth:`LatencyHistogram.quantiles`."""
        return self.snapshot().quantiles(qs)

    @property
    def count(self) -> int:
        """How many durations the window holds."""
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
        """Draws the window's latency by percentile; see :meth:`LatencyHistogram.plot`."""
        return self.snapshot().plot(ax)

    def __repr__(self) -> str:
        inside = repr(self.snapshot()).partition("(")[2]
        return f"{type(self).__name__}(last {format_duration(self.window_s)}, {inside}"

    def _repr_html_(self) -> str:
        return self.snapshot()._repr_html_()
