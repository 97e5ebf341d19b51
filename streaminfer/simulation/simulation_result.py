"""Result of a simulation: counts, an array per request, an array per batch, and the timeline they make."""

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import inline_svg
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.units import format_duration
from streaminfer.simulation.timeline_plot import draw_timeline

__all__ = ["SimulationResult"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SimulationResult:
    """Outcomes of requests and batches.

    Counting rule: each arrival is in exactly one of ``on_time``, ``dropped`` and ``late``.

    Attributes:
        on_time: completed by the deadline.
        dropped: never part of a batch: rejected by the policy, or past the deadline in the queue or on arrival.
        late: completed after the deadline.
        arrivals_s: shape (n,), float64, the arrivals.
        latencies_s: shape (n,), float64, from arrival to response; NaN for dropped requests.
        is_on_time: shape (n,), bool, which requests ``on_time`` counts.
        drops_s: shape (dropped,), float64, ascending: when requests were dropped.
        batch_sizes: shape (batches,), int64, in order of their start.
        batch_starts_s: shape (batches,), float64, ascending.
        batch_ends_s: shape (batches,), float64.
        batch_workers: shape (batches,), int64, 0 to ``workers`` - 1; of several free workers, the lowest runs a batch.
        reasons: reason of each batch's release, in the words of the policy.
        workers: how many batches could run at once.
    """

    on_time: int
    dropped: int
    late: int
    arrivals_s: NDArray[np.float64]
    latencies_s: NDArray[np.float64]
    is_on_time: NDArray[np.bool_]
    drops_s: NDArray[np.float64]
    batch_sizes: NDArray[np.int64]
    batch_starts_s: NDArray[np.float64]
    batch_ends_s: NDArray[np.float64]
    batch_workers: NDArray[np.int64]
    reasons: tuple[str, ...]
    workers: int

    @property
    def share_on_time(self) -> float:
        """``on_time`` as a share of all arrivals; 1.0 if there were none."""
        arrivals = self.arrivals_s.size
        return self.on_time / arrivals if arrivals else 1.0

    def plot(self, ax: Any = None) -> Any:
        """Draw the timeline: a row per worker, a bar per batch colored by its reason, ticks of arrivals and drops.

        A bar that is wide enough shows the number of requests in the batch.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        return draw_timeline(
            ax,
            purpose="SimulationResult.plot",
            starts_s=self.batch_starts_s,
            ends_s=self.batch_ends_s,
            workers=self.batch_workers,
            sizes=self.batch_sizes,
            reasons=self.reasons,
            rows=self.workers,
            arrivals_s=self.arrivals_s,
            drops_s=self.drops_s,
        )

    def __repr__(self) -> str:
        batches = self.batch_sizes.size
        mean = f", {self.batch_sizes.mean():.3g} a batch" if batches else ""
        return (
            f"SimulationResult(on_time={self.on_time}, dropped={self.dropped}, late={self.late}, "
            f"share_on_time={self.share_on_time:.4f}, batches={batches}{mean})"
        )

    def _repr_html_(self) -> str:
        answered_s = self.latencies_s[~np.isnan(self.latencies_s)]
        p50_s, p99_s = np.quantile(answered_s, (0.5, 0.99)).tolist() if answered_s.size else (None, None)
        rows = [
            ("on time", f"{self.on_time:,} ({self.share_on_time:.1%})"),
            ("dropped", f"{self.dropped:,}"),
            ("late", f"{self.late:,}"),
            ("p50", format_duration(p50_s)),
            ("p99", format_duration(p99_s)),
            ("batches", f"{self.batch_sizes.size:,}"),
        ]
        return inline_svg(self.plot, f"Timeline: {self!r}") + html_table(rows, caption="simulation")
