"""The timeline of a batcher, recorded or simulated: a row per worker, a bar per batch, ticks for arrivals and drops.

A reason has the same color in every timeline, so that two of them can be compared. All bars of a reason are one
artist: thousands of batches draw in a fraction of a second. A bar says its size where there is room for the figure.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.extras import require

__all__ = ["draw_timeline"]

_COLORS = ("full", "idle_worker", "max_queue_delay", "planned", "probe", "exploration")
_HALF = 0.4
_WIDE_ENOUGH = 1 / 60
"""A bar of at least this share of the whole has room for its size."""


def draw_timeline(
    ax: Any,
    *,
    purpose: str,
    starts_s: NDArray[np.float64],
    ends_s: NDArray[np.float64],
    workers: NDArray[np.int64],
    sizes: NDArray[np.int64],
    reasons: tuple[str, ...],
    rows: int,
    arrivals_s: NDArray[np.float64],
    drops_s: NDArray[np.float64],
    failed: NDArray[np.bool_] | None = None,
    running: NDArray[np.bool_] | None = None,
) -> Any:
    """Draws batches, arrivals and drops over time.

    Args:
        ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.
        purpose: what needs matplotlib, for the message.
        starts_s: shape (batches,), seconds.
        ends_s: shape (batches,), seconds; of a batch that runs, where its bar is to end.
        workers: shape (batches,), the row of each, 0 to ``rows`` - 1.
        sizes: shape (batches,).
        reasons: why each batch went; decides the color.
        rows: how many rows there are.
        arrivals_s: shape (n,), seconds.
        drops_s: shape (m,), seconds.
        failed: shape (batches,), batches to be hatched.
        running: shape (batches,), batches to be framed with a dashed line.

    Returns:
        The axes: a collection of bars for each reason in order of appearance, then one of those that failed and one of
        those that run, where there are any; a line of ticks each for arrivals and drops.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    collections = require("matplotlib.collections", extra="plot", purpose=purpose)
    if ax is None:
        ax = require("matplotlib.pyplot", extra="plot", purpose=purpose).subplots()[1]
    left, right, bottom, top = starts_s, ends_s, workers - _HALF, workers + _HALF
    corners = np.stack((left, bottom, left, top, right, top, right, bottom), axis=-1).reshape(-1, 4, 2)

    def bars(chosen: NDArray[np.bool_], label: str, **style: Any) -> None:
        ax.add_collection(collections.PolyCollection(corners[chosen], label=label, **style))

    given = np.array(reasons, dtype=object)
    for reason, color in _colors(reasons).items():
        bars(given == reason, reason, facecolor=color, edgecolor="white")
    if failed is not None and failed.any():
        bars(failed, "failed", facecolor="none", edgecolor="red", hatch="///")
    if running is not None and running.any():
        bars(running, "still running", facecolor="none", edgecolor="black", linestyle="--")
    ticks = (("arrivals", arrivals_s, -1.0, "black"), ("drops", drops_s, -1.5, "red"))
    for label, instants_s, row, color in ticks:
        ax.plot(instants_s, np.full(instants_s.size, row), "|", color=color, label=label)
    instants = np.concatenate((starts_s, ends_s, arrivals_s, drops_s))
    whole_s = np.ptp(instants) if instants.size else 0.0
    for at in np.flatnonzero((ends_s - starts_s >= _WIDE_ENOUGH * whole_s) & (ends_s > starts_s)).tolist():
        middle_s = (starts_s[at] + ends_s[at]) / 2
        ax.text(middle_s, workers[at], str(sizes[at]), ha="center", va="center", fontsize="small", clip_on=True)
    ax.set_yticks(
        [*range(rows), *(row for _, _, row, _ in ticks)],
        [*(f"worker {worker}" for worker in range(rows)), *(label for label, _, _, _ in ticks)],
    )
    ax.set_xlabel("seconds")
    ax.legend(loc="upper right")
    return ax


def _colors(reasons: tuple[str, ...]) -> dict[str, str]:
    """Each reason's color, in order of appearance; those of other policies share what is left of the cycle."""
    different = list(dict.fromkeys(reasons))
    others = [reason for reason in different if reason not in _COLORS]
    left = 10 - len(_COLORS)
    return {
        reason: f"C{_COLORS.index(reason) if reason in _COLORS else len(_COLORS) + others.index(reason) % left}"
        for reason in different
    }
