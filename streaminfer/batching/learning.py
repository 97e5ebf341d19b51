"""`LearnedServiceTime`: what was learned of a device, as tables that a planner reads, to save and to plot.

What is known of level, shape and noise changes a little with every batch
(:mod:`streaminfer.batching.level_and_shape`). Tables are made of it at the first lookup after something moved by more
than 0.02 % or a tenth of the noise: between, lookups cost nothing.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.level_and_shape import BESIDE, BEYOND, LevelAndShape
from streaminfer.batching.service_time import ServiceTime, best_size, service_time_axes, whole_ns

__all__ = ["LearnedServiceTime"]

_ALIKE = 0.05


class LearnedServiceTime(LevelAndShape):
    """The time of a batch of each size, from the batches that ran.

    Not thread-safe: it belongs to one event loop, as the batcher that feeds it.

    Args:
        prior: what to expect at first; its shape holds until batches tell otherwise.

    Raises:
        TypeError: ``prior`` is not a :class:`ServiceTime`.
    """

    def __init__(self, *, prior: ServiceTime | None = None) -> None:
        super().__init__(prior=prior)
        self._tables_for = (-1, -1)
        self._relative_for: tuple[int, ServiceTime | None] = (-1, None)
        self._relative = np.zeros(0)
        self._central = self._upper = np.zeros(0, np.int64)
        self._best: int | None = None

    def upper_ns(self, max_batch_size: int) -> NDArray[np.int64]:
        """What a batch of each size hardly ever exceeds (19 of 20 do not): for feasibility.

        Returns:
            Shape (max_batch_size + 1,), int64, nondecreasing, entry 0 is 0; read-only, the same object until
            ``version`` changes.

        Raises:
            RuntimeError: nothing is known yet.
        """
        if self._tables_for != (max_batch_size, self._version):
            self._make_tables(max_batch_size)
        return self._upper

    def expected_ns(self, max_batch_size: int) -> NDArray[np.int64]:
        """The central estimate; as :meth:`upper_ns`."""
        if self._tables_for != (max_batch_size, self._version):
            self._make_tables(max_batch_size)
        return self._central

    def best_batch_size(self, max_batch_size: int) -> int:
        """The size past which larger batches are not worth their wait, as :meth:`ServiceTime.best_batch_size`.

        Of the sizes up to the largest that was seen or given: what larger ones would do is a guess.

        Raises:
            RuntimeError: nothing is known yet.
        """
        table = self.expected_ns(max_batch_size)
        seen = self._sizes[-1] if self._sizes and self._prior is None else max_batch_size
        return best_size(table[: min(seen, max_batch_size) + 1].astype(np.float64))

    def size_worth_trying(self, max_batch_size: int) -> int:
        """The same, in hope: how large a planner lets batches become.

        Each size is credited with its uncertainty, one standard deviation: one that was seen once, and slow, is tried
        again, and larger ones than any so far are tried once there is load enough. Of sizes that the noise does not
        tell apart, up to 5 %, it is the largest: what is planned smaller is not seen again.

        Raises:
            RuntimeError: nothing is known yet.
        """
        if self._tables_for != (max_batch_size, self._version):
            self._make_tables(max_batch_size)
        if self._best is None:
            table = self._central.astype(np.float64)
            if self._sizes:
                sizes, last = np.arange(len(table)), self._sizes[-1]
                doubt = np.interp(sizes, self._sizes, [math.sqrt(self._known[size].variance) for size in self._sizes])
                if self._prior is None:
                    doubt[last + 1 :] += BESIDE + BEYOND * np.log(sizes[last + 1 :] / last)
                table *= np.exp(-doubt)
            best = best_size(table)
            throughput = np.arange(1, len(table)) / table[1:]
            alike = throughput[best - 1] * (1.0 - min(self._noise.deviation, _ALIKE))
            self._best = int(np.flatnonzero(throughput >= alike)[-1]) + 1
        return self._best

    def fitted(self) -> ServiceTime:
        """The central estimate as a given service time: to save, to compare, to start the next process from.

        Raises:
            RuntimeError: nothing is known yet.
        """
        curve, scale_s = self._published_curve(), math.exp(self._published_level) / 1e9
        return ServiceTime(curve.sizes, tuple(time * scale_s for time in curve.times_s), curve.per_item_s * scale_s)

    def plot(self, ax: Any = None) -> Any:
        """Draws the central line, the band to the upper estimate, and what each size's own batches said.

        Args:
            ax: a matplotlib ``Axes``, or ``None`` for a new figure.

        Returns:
            The axes: x = size, y = seconds; a point's area grows with the batches behind it.

        Raises:
            MissingExtra: matplotlib is not installed.
            RuntimeError: nothing is known yet.
        """
        largest = max(2 * self._published_curve().sizes[-1], 32)
        central, upper = self.expected_ns(largest)[1:] / 1e9, self.upper_ns(largest)[1:] / 1e9
        ax = service_time_axes(ax, "LearnedServiceTime.plot")
        sizes = np.arange(1, largest + 1)
        line = ax.plot(sizes, central, label="expected")[0]
        ax.fill_between(sizes, central, upper, color=line.get_color(), alpha=0.25, linewidth=0, label="95 %")
        scale_s = math.exp(self._level) / 1e9
        seen = [(size, known) for size in self._sizes if (known := self._known[size]).visits]
        ax.scatter(
            [size for size, _ in seen],
            [scale_s * math.exp(known.log_time) for _, known in seen],
            s=[6.0 + 6.0 * math.log2(known.visits) for _, known in seen],
            color=line.get_color(),
            label="by size",
        )
        ax.legend()
        return ax

    def __repr__(self) -> str:
        if not self.known:
            return "LearnedServiceTime(observations=0)"
        band = math.expm1(self._published_upper)
        return f"LearnedServiceTime(observations={self._observations}, sizes={len(self._sizes)}, band=+{band:.2%})"

    def _make_tables(self, max_batch_size: int) -> None:
        curve = self._published_curve()
        if self._relative_for != (max_batch_size, curve):
            self._relative = curve.table_s(max_batch_size)
            self._relative_for = (max_batch_size, curve)
        self._central = whole_ns(self._relative, math.exp(self._published_level))
        self._upper = whole_ns(self._relative, math.exp(self._published_level + self._published_upper))
        self._best = None
        self._tables_for = (max_batch_size, self._version)
