"""Duration of a batch as a function of its size: given as a line or a table.

*Idea.* A line, a profile or a fitted file becomes one kind of object: times at a few sizes, straight lines between
them, and a slope after the last. An affine time is the case of one point at size 0.

*Invariants.* Times are positive from size 1 on and never fall as the batch grows: a batch may be padded to a larger
one, so a larger batch that seems faster was measured wrongly. Below the first size the first slope continues, but a
smaller batch takes at least its proportional share of the first time: ``t(n) ≥ t(first)·n/first``.

*Cost.* ``seconds`` is a bisection; ``table_ns`` is linear in the largest size.
:mod:`streaminfer.batching.service_time.learned_service_time` learns one of these from live batches.
"""

import json
import math
import numbers
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import COLORS, inline_svg, new_axes
from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_duration, expected

__all__ = ["WORTH_GROWING", "ServiceTime", "best_size", "service_time_axes", "service_time_html", "whole_ns"]

WORTH_GROWING = 0.95
"""Power of the size in the worth of a batch: twice the size must bring 3.5 % more throughput."""

_FORMAT = "streaminfer.service_time"
_VERSION = 1
_LONGEST_NS = 1e17  # three years: sums of a few such instants still fit into int64
_NEAR_BEST = 0.98


@attrs.frozen(repr=False)
class ServiceTime:
    """The time of a batch of each size; made by :meth:`affine`, :meth:`table` or :meth:`load`.

    Immutable, comparable and hashable; safe to share between threads.

    Attributes:
        sizes: sizes with given times, ascending; ``(0,)`` for an affine time, whose point 0 is the set-up.
        times_s: seconds at these sizes, nondecreasing.
        per_item_s: seconds of each further item after the last size.
    """

    sizes: tuple[int, ...]
    times_s: tuple[float, ...]
    per_item_s: float

    @classmethod
    def affine(cls, setup_s: float, per_item_s: float) -> Self:
        """Return the affine time ``setup_s + per_item_s · size``.

        Args:
            setup_s: seconds of a batch regardless of its size, ≥ 0.
            per_item_s: seconds of each item, ≥ 0; not both may be 0.

        Raises:
            TypeError, ValueError: an argument is not such a number of seconds.
        """
        setup_s = check_duration("setup_s", setup_s)
        per_item_s = check_duration("per_item_s", per_item_s)
        if setup_s + per_item_s == 0:
            raise ValueError(expected("per_item_s", "a number of seconds > 0 where setup_s is 0", per_item_s))
        return cls((0,), (setup_s,), per_item_s)

    @classmethod
    def table(cls, times_s: Mapping[int, float]) -> Self:
        """Return straight lines between measured sizes.

        After the last size the last slope continues; a single entry counts as proportional to the size.

        Args:
            times_s: seconds, > 0, by batch size, ≥ 1; nondecreasing with the size.

        Raises:
            TypeError, ValueError: the mapping is empty, a size or time is wrong, or a larger batch takes less time.
        """
        expectation = "seconds by batch size, at least one"
        if not isinstance(times_s, Mapping):
            raise TypeError(expected("times_s", expectation, times_s))
        if not times_s:
            raise ValueError(expected("times_s", expectation, times_s))
        points = sorted(
            (check_count("times_s: a size", size), check_duration(f"times_s[{size!r}]", seconds, positive=True))
            for size, seconds in times_s.items()
        )
        sizes, seconds = tuple(size for size, _ in points), tuple(seconds for _, seconds in points)
        _check_rising("times_s", sizes, seconds)
        if len(points) == 1:
            return cls(sizes, seconds, seconds[0] / sizes[0])
        return cls(sizes, seconds, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has other content or another version; the message names the file and the problem.
        """
        file = Path(path)
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:  # not UTF-8, not JSON, or of other content
            raise ValueError(f"{os.fspath(path)}: not a saved ServiceTime: {error}") from error

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """Return the service time from the result of :meth:`to_dict`.

        Raises:
            TypeError, ValueError: it is something else, or another version.
        """
        return cls(*_read(stored))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "sizes": list(self.sizes),
            "times_s": list(self.times_s),
            "per_item_s": self.per_item_s,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file as JSON, replacing an existing file.

        Raises:
            OSError: the file cannot be written.
        """
        write_whole(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def seconds(self, size: int) -> float:
        """Return the seconds of a batch of ``size`` items.

        Raises:
            TypeError, ValueError: ``size`` is not a whole number ≥ 1.
        """
        return self.at(check_count("size", size))

    def at(self, size: int) -> float:
        """Return :meth:`seconds` without the check, for loops."""
        sizes, times_s = self.sizes, self.times_s
        after = bisect_right(sizes, size)
        if after == len(sizes):
            return times_s[-1] + self.per_item_s * (size - sizes[-1])
        if after:
            below, above = sizes[after - 1], sizes[after]
            start_s = times_s[after - 1]
            return start_s + (times_s[after] - start_s) * (size - below) / (above - below)
        first, first_s = sizes[0], times_s[0]
        return max(first_s - self._first_slope_s() * (first - size), first_s * size / first)

    def table_s(self, max_batch_size: int) -> NDArray[np.float64]:
        """Return the times of all sizes up to the largest.

        Returns:
            Shape (max_batch_size + 1,), float64, seconds; entry 0 is 0.
        """
        sizes = np.arange(check_count("max_batch_size", max_batch_size) + 1)
        first, last, first_s = self.sizes[0], self.sizes[-1], self.times_s[0]
        table = np.interp(sizes, self.sizes, self.times_s)
        table[last:] += self.per_item_s * (sizes[last:] - last)
        below = sizes[:first]
        table[:first] = np.maximum(first_s - self._first_slope_s() * (first - below), first_s * below / first)
        table[0] = 0.0
        return table

    def table_ns(self, max_batch_size: int) -> NDArray[np.int64]:
        """Return the times of all sizes up to the largest, in whole nanoseconds.

        Returns:
            Shape (max_batch_size + 1,), int64, nondecreasing; entry 0 is 0, the others are at least 1 and at most
            10**17 (three years).
        """
        return whole_ns(self.table_s(max_batch_size), 1e9)

    def best_batch_size(self, max_batch_size: int) -> int:
        """Return the size above which larger batches are not worth their wait.

        Among the sizes whose throughput ``size / t(size)`` is within 2 % of the best, it is the one with the largest
        ``size ** 0.95 / t(size)``: a batch twice as large must bring 3.5 % more. If batching gains almost nothing, it
        is a small size; if every further item still gains (4 + 0.25·n ms at 64), it is the largest allowed.
        """
        return best_size(self.table_s(max_batch_size))

    def plot(self, ax: Any = None) -> Any:
        """Draw the time by batch size.

        Args:
            ax: a matplotlib ``Axes``, or ``None`` for a new figure.

        Returns:
            The axes; the line has x = size and y = seconds.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        ax = service_time_axes(ax, "ServiceTime.plot")
        largest = max(2 * self.sizes[-1], 32)
        ax.plot(np.arange(1, largest + 1), self.table_s(largest)[1:], color=COLORS[0])
        if self.sizes[0]:
            ax.plot(self.sizes, self.times_s, linestyle="", marker="o", color=ax.lines[-1].get_color())
        ax.set_ylim(bottom=0.0, auto=True)  # the top follows later drawings too
        return ax

    def _repr_html_(self) -> str:
        return service_time_html(self, self.plot)

    def __repr__(self) -> str:
        if self.sizes == (0,):
            return f"ServiceTime.affine(setup_s={self.times_s[0]!r}, per_item_s={self.per_item_s!r})"
        points = dict(zip(self.sizes, self.times_s, strict=True))
        if len(points) <= 4 and 0 not in points and self == self.table(points):
            return f"ServiceTime.table({points})"
        ends = f"{self.sizes[0]}: {self.times_s[0]:.4g} … {self.sizes[-1]}: {self.times_s[-1]:.4g}"
        return f"<ServiceTime of {len(points)} sizes, {ends}, then {self.per_item_s:.4g} an item>"

    def _first_slope_s(self) -> float:
        if len(self.sizes) == 1:
            return self.per_item_s
        return (self.times_s[1] - self.times_s[0]) / (self.sizes[1] - self.sizes[0])


def whole_ns(table: NDArray[np.float64], unit_ns: float) -> NDArray[np.int64]:
    """Return times as whole nanoseconds that a planner can add up.

    Args:
        table: shape (n + 1,), float64, nondecreasing; entry 0 is not read.
        unit_ns: nanoseconds of the table's unit.

    Returns:
        The same shape, int64, read-only: entry 0 is 0, the others are within 1 … 10**17.
    """
    times_ns = np.minimum(np.minimum(table, _LONGEST_NS / unit_ns) * unit_ns, _LONGEST_NS)  # the product is rounded
    rounded: NDArray[np.int64] = (np.maximum(times_ns, 1.0) + 0.5).astype(np.int64)
    rounded[0] = 0
    rounded.flags.writeable = False
    return rounded


def best_size(table: NDArray[Any]) -> int:
    """Return the batch size that `ServiceTime.best_batch_size` describes.

    Args:
        table: shape (n + 1,), times by size in any unit; entry 0 is not read, the others are positive.
    """
    sizes = np.arange(1, len(table))
    throughput = sizes / table[1:]
    is_near_best = throughput >= _NEAR_BEST * throughput.max()
    return int(np.argmax(is_near_best * throughput * sizes ** (WORTH_GROWING - 1.0))) + 1


def service_time_axes(ax: Any, purpose: str) -> Any:
    """Return axes with labels for the time of a batch by its size.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose=purpose)
    ax = new_axes(ax, purpose)
    ax.yaxis.set_major_formatter(ticker.EngFormatter(unit="s"))
    ax.set_xlabel("batch size")
    ax.set_ylabel("time of a batch")
    return ax


def service_time_html(it: object, draw: Callable[[Any], Any] | None) -> str:
    """Return the picture of a service time for a notebook, and its text.

    Args:
        it: the service time.
        draw: its ``plot``; ``None``: there is nothing to draw yet.
    """
    from html import escape  # noqa: PLC0415 - a notebook's need, not every import's

    picture = "" if draw is None else inline_svg(draw, f"Time of a batch by its size: {it!r}")
    return f"{picture}<p>{escape(repr(it))}</p>"


def _check_rising(name: str, sizes: Sequence[int], times_s: Sequence[float]) -> None:
    for at in range(1, len(sizes)):
        if times_s[at] < times_s[at - 1]:
            expectation = f"a time of size {sizes[at]} of at least {times_s[at - 1]!r}, that of size {sizes[at - 1]}"
            raise ValueError(expected(name, expectation, times_s[at]))


def _read(stored: Any) -> tuple[tuple[int, ...], tuple[float, ...], float]:
    """Return the three checked fields of a stored service time."""
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise ValueError(f"expected an object with format {_FORMAT!r}")
    if stored.get("version") != _VERSION:
        raise ValueError(expected("version", str(_VERSION), stored.get("version")))
    sizes, times_s = stored.get("sizes"), stored.get("times_s")
    if not isinstance(sizes, list) or not isinstance(times_s, list) or not sizes or len(sizes) != len(times_s):
        raise ValueError("expected as many sizes as times_s, at least one")
    for size, following in zip(sizes, [*sizes[1:], math.inf], strict=True):
        check_count("sizes", size, at_least=0)
        if not isinstance(following, numbers.Real) or size >= following:
            raise ValueError(expected("sizes", "ascending batch sizes", sizes))
    for size, seconds in zip(sizes, times_s, strict=True):
        check_duration("times_s", seconds, positive=size > 0)
    _check_rising("times_s", sizes, times_s)
    per_item_s = check_duration("per_item_s", stored.get("per_item_s"), positive=sizes == [0] and times_s == [0])
    return tuple(sizes), tuple(map(float, times_s)), per_item_s
