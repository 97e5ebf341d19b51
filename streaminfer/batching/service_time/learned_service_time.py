"""Tables of batch durations for a planner, from a :class:`LatencyModel`."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import COLORS, legend_above
from streaminfer.batching.service_time.latency_model import LatencyModel, nearest_size
from streaminfer.batching.service_time.service_time import (
    ServiceTime,
    best_size,
    service_time_axes,
    service_time_html,
    whole_ns,
)

__all__ = ["LearnedServiceTime"]

_NOISE_WIDTHS = 2.0  # standard deviations by which two durations may differ through noise
_MEAN_WIDTHS = 1.5  # the same for two means: of several sizes, the luckiest looks better than it is
_MAX_NOISE_DIFFERENCE = 0.25  # largest difference of throughput of sizes that count as equally good through noise


class LearnedServiceTime(LatencyModel):
    """Duration of a batch of each size, learned from the batches that ran.

    Not thread-safe: it belongs to one event loop, like the batcher that feeds it.

    Args:
        prior: the expected durations until batches correct them.

    Raises:
        TypeError: ``prior`` is not a :class:`ServiceTime`.
    """

    def __init__(self, *, prior: ServiceTime | None = None) -> None:
        super().__init__(prior=prior)
        self._tables_for = (-1, -1)
        self._relative = np.zeros(0)
        self._mean = self._upper = np.zeros(0, np.int64)

    @property
    def deviation(self) -> float:
        """Standard deviation of the logarithm of durations around the expected ones."""
        return self.residuals.deviation

    def flat_up_to(self, size: int) -> bool:
        """Return whether a batch of ``size`` rows takes no longer, except for noise, than one of a quarter of them.

        Raises:
            RuntimeError: no duration is known yet, and ``size`` is at least 2.
        """
        return size < 2 or self.predict_ns(size) <= self.predict_ns(max(size // 4, 1)) * (
            1.0 + _NOISE_WIDTHS * self.deviation
        )

    def expected_ns(self, max_batch_size: int) -> NDArray[np.int64]:
        """Return the mean duration of a batch of each size.

        Returns:
            Shape (max_batch_size + 1,), int64, nondecreasing, entry 0 is 0; read-only, the same object until
            ``version`` changes.

        Raises:
            RuntimeError: no duration is known yet.
        """
        self._refresh(max_batch_size)
        return self._mean

    def upper_ns(self, max_batch_size: int) -> NDArray[np.int64]:
        """Return the durations that 19 of 20 batches do not exceed; as :meth:`expected_ns`, and at least as long."""
        self._refresh(max_batch_size)
        return self._upper

    def best_batch_size(self, max_batch_size: int) -> int:
        """Return the size above which larger batches are not worth their wait, as :meth:`ServiceTime.best_batch_size`.

        Sizes count as equally good if they differ less than the noise of their means, and by at most a quarter; the
        largest of them is returned. But a model that gains little from batching has small batches at any noise.

        Raises:
            RuntimeError: no duration is known yet.
        """
        self._refresh(max_batch_size)
        table = self._relative
        best = best_size(table)
        limit = int(max(best, min(self.gains_up_to, max_batch_size)))
        larger = [size for size in self._sizes if best < size < limit]
        for above, below in zip([limit, *larger[::-1]], [*larger[::-1], best], strict=True):
            least = best / table[best] * (1.0 - self._unknown_share(best, above))
            sizes = np.arange(below + 1, above + 1)
            as_good = sizes[sizes / table[below + 1 : above + 1] >= least]
            if as_good.size:
                return int(as_good[-1])
        return best

    def _unknown_share(self, size: int, other: int) -> float:
        """Return by how much the means of two sizes may differ unnoticed, given the number of their batches."""
        batches, of_other = (max(self._visits.get(nearest_size(it), 0), 1) for it in (size, other))
        share = self.deviation * min(_MEAN_WIDTHS * math.sqrt(1.0 / batches + 1.0 / of_other), 1.0)
        return min(share, _MAX_NOISE_DIFFERENCE)

    def fitted(self) -> ServiceTime:
        """Return the median durations as a fixed service time: to save, to compare, or to start the next process with.

        Raises:
            RuntimeError: no duration is known yet.
        """
        curve, scale_s = self.curve(), self.scale_ns() / 1e9
        return ServiceTime(curve.sizes, tuple(time * scale_s for time in curve.times_s), curve.per_item_s * scale_s)

    def plot(self, ax: Any = None) -> Any:
        """Draw the mean, the range up to the 95 % quantile, and the values of each size's own batches.

        Args:
            ax: a matplotlib ``Axes``, or ``None`` for a new figure.

        Returns:
            The axes: x = size, y = seconds; the area of a point grows with the number of its batches.

        Raises:
            MissingExtra: matplotlib is not installed.
            RuntimeError: no duration is known yet.
        """
        observed = self.seen()
        largest = max(2 * self.trusted, 32) if self.trusted < 4096 else 64
        mean, upper = self.expected_ns(largest)[1:] / 1e9, self.upper_ns(largest)[1:] / 1e9
        ax = service_time_axes(ax, "LearnedServiceTime.plot")
        sizes = np.arange(1, largest + 1)
        line = ax.plot(sizes, mean, color=COLORS[0], label="mean")[0]
        ax.fill_between(sizes, mean, upper, color=line.get_color(), alpha=0.25, linewidth=0, label="95 %")
        shown = [(size, ns / 1e9, visits) for size, (ns, visits) in observed.items() if size <= largest]
        ax.scatter(
            [size for size, _, _ in shown],
            [seconds for _, seconds, _ in shown],
            s=[6.0 + 3.0 * visits for _, _, visits in shown],
            color=line.get_color(),
            label="by size",
        )
        ax.set_ylim(bottom=0.0, auto=True)
        legend_above(ax)
        return ax

    def _repr_html_(self) -> str:
        return service_time_html(self, self.plot if self.known else None)

    def __repr__(self) -> str:
        if not self.known:
            return "LearnedServiceTime(observations=0)"
        margin = self.residuals.margin
        return f"LearnedServiceTime(observations={self.observations}, sizes={len(self.seen())}, p95=+{margin:.1%})"

    def _refresh(self, max_batch_size: int) -> None:
        if self._tables_for == (max_batch_size, self.version):
            return
        self._relative, scale_ns = self.curve().table_s(max_batch_size), self.scale_ns()
        residuals = self.residuals
        mean_ns = scale_ns * residuals.mean_factor
        self._mean = whole_ns(self._relative, mean_ns)
        self._upper = whole_ns(self._relative, max(scale_ns * math.exp(residuals.margin), mean_ns))
        self._tables_for = (max_batch_size, self.version)
