"""The timeline of a batcher, recorded or simulated: a row per worker, a bar per batch, ticks for arrivals and drops.

A reason has the same color in every timeline, so that timelines can be compared. All bars of a reason are one artist. A
bar shows its size if it is wide enough. If a worker has too many batches to tell them apart, time is cut into bins: a
bin is filled up to the share of its time for which the worker was busy, by reason. In the same way, many arrivals or
drops become their rate. So a picture of a million batches is no larger than one of a thousand.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import (
    BAD,
    COLORS,
    GREY,
    draw_placeholder,
    in_seconds,
    legend_above,
    new_axes,
)
from streaminfer._internal.loading.extras import require

__all__ = ["draw_timeline"]

_REASONS = ("full", "idle_worker", "max_queue_delay", "planned", "probe", "exploration", "returning_callers")
_COLORS = (*COLORS[:-1], "#f0e442", "C5", "C8", "C6", "C9")  # without the last color of the palette, that of drops
_HALF = 0.4
_WIDE_ENOUGH = 1 / 60
"""Smallest share of the width at which a bar has room for its size."""
_BAR_EDGE: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6}
_BARS_IN_VECTORS = 1000
"""Number of bars above which they are drawn as pixels, which take less of a file."""
_BATCHES_APART = 250
"""Number of batches of a worker above which they cannot be told apart across a page."""
_BATCHES_IN_ALL = 4000
_CELLS = 20_000
_TICKS = 500
_MARKS = 200
_ROW_IN = 0.28
_ROWS_LABELED = 16
_LABEL_IN = 0.2


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
    """Draw batches, arrivals and drops over time.

    Args:
        ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.
        purpose: the feature that needs matplotlib, for the message.
        starts_s: shape (batches,), seconds.
        ends_s: shape (batches,), seconds; the bar of a running batch ends with the picture.
        workers: shape (batches,), the row of each, 0 to ``rows`` - 1.
        sizes: shape (batches,).
        reasons: reason of each batch's release; decides the color.
        rows: number of rows.
        arrivals_s: shape (n,), seconds.
        drops_s: shape (m,), seconds.
        failed: shape (batches,), the batches to hatch.
        running: shape (batches,), the batches to frame with a dashed line.

    Returns:
        The axes: a collection of bars for each reason in order of appearance, then one of the latest failed batches and
        one of the running ones, if there are any; a line of ticks, or the rate, of arrivals and of drops.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    collections = require("matplotlib.collections", extra="plot", purpose=purpose)
    ticker = require("matplotlib.ticker", extra="plot", purpose=purpose)
    ax = new_axes(ax, purpose, height_in=1.6 + _ROW_IN * min(rows + 2, _ROWS_LABELED))
    ax.grid(visible=False, axis="y")
    instants = np.concatenate((starts_s, ends_s, arrivals_s, drops_s))
    begin_s, end_s = (instants.min(), instants.max()) if instants.size else (0.0, 0.0)
    bins = int(np.clip(_CELLS // max(rows, 1), 40, 240))
    edges_s = np.linspace(begin_s, end_s if end_s > begin_s else begin_s + 1.0, bins + 1)
    if running is not None:
        ends_s = np.where(running, edges_s[-1], ends_s)
    reason_of = np.array(reasons, dtype=object)
    below = np.zeros((rows, bins))
    dense = starts_s.size > min(_BATCHES_APART * max(rows, 1), _BATCHES_IN_ALL)
    is_large = dense or starts_s.size > _BARS_IN_VECTORS
    for reason, color in _colors(reasons).items():
        chosen = reason_of == reason
        if dense:
            shares = _busy_shares(starts_s[chosen], ends_s[chosen], workers[chosen], edges_s, rows)
            busy = np.nonzero(shares)
            bottom = busy[0] - _HALF + 2 * _HALF * below[busy]
            corners = _corners(edges_s[busy[1]], edges_s[busy[1] + 1], bottom, bottom + 2 * _HALF * shares[busy])
            below += shares
        else:
            corners = _corners(starts_s[chosen], ends_s[chosen], workers[chosen] - _HALF, workers[chosen] + _HALF)
        edges: dict[str, Any] = {"linewidth": 0.0} if dense else _BAR_EDGE
        ax.add_collection(
            collections.PolyCollection(corners, label=reason, facecolor=color, rasterized=is_large, **edges)
        )
    frames = _corners(starts_s, ends_s, workers - _HALF, workers + _HALF)
    for chosen, label, style in (
        (failed, "failed", {"edgecolor": BAD, "hatch": "///"}),
        (running, "still running", {"edgecolor": "black", "linestyle": "--"}),
    ):
        if chosen is not None and chosen.any():
            latest = np.flatnonzero(chosen)[-_MARKS:]
            ax.add_collection(collections.PolyCollection(frames[latest], label=label, facecolor="none", **style))
    unit = max(1.0, rows / _labels(ax))  # height of the two rows below the workers
    for label, instants_s, row, color in (("arrivals", arrivals_s, -unit, GREY), ("drops", drops_s, -2 * unit, BAD)):
        if instants_s.size <= _TICKS:
            ax.plot(instants_s, np.full(instants_s.size, row), "|", color=color, label=label)
        else:
            counts = np.histogram(instants_s, edges_s)[0]
            base = row - _HALF * unit
            heights = base + 2 * _HALF * unit * counts / counts.max()
            text = f"{label}, to {counts.max() / np.diff(edges_s)[0]:,.0f} /s"
            ax.stairs(heights, edges_s, baseline=base, fill=True, color=color, label=text)
    wide_enough = (ends_s - starts_s >= _WIDE_ENOUGH * (end_s - begin_s)) & (ends_s > starts_s)
    for at in np.flatnonzero(wide_enough & (rows <= _ROWS_LABELED)).tolist():
        middle_s = (starts_s[at] + ends_s[at]) / 2
        ax.text(middle_s, workers[at], str(sizes[at]), ha="center", va="center", fontsize="small", clip_on=True)
    _name_rows(ax, rows, unit)
    ax.set_xlim(edges_s[0], edges_s[-1])
    ax.xaxis.set_major_locator(ticker.MaxNLocator(8))
    in_seconds(ax.xaxis)
    ax.set_xlabel("time")
    if not instants.size:
        draw_placeholder(ax, "no requests yet")
    legend_above(ax)
    return ax


def _labels(ax: Any) -> int:
    """Return the number of workers for whose names there is room."""
    return int(np.clip(ax.bbox.height / ax.figure.dpi / _LABEL_IN - 2, 4, _ROWS_LABELED))


def _name_rows(ax: Any, rows: int, unit: float) -> None:
    labeled = range(0, rows, -(-rows // _labels(ax)) or 1)
    names = [*(f"worker {worker}" for worker in labeled), "arrivals", "drops"]
    ax.set_yticks([*labeled, -unit, -2 * unit], names, fontsize="small")
    ax.set_ylim(-2.6 * unit, max(rows, 1) - 0.4)


def _corners(left: Any, right: Any, bottom: Any, top: Any) -> NDArray[np.float64]:
    """Return rectangles as corners, shape (n, 4, 2)."""
    return np.stack((left, bottom, left, top, right, top, right, bottom), axis=-1).reshape(-1, 4, 2)


def _busy_shares(
    starts_s: NDArray[np.float64],
    ends_s: NDArray[np.float64],
    workers: NDArray[np.int64],
    edges_s: NDArray[np.float64],
    rows: int,
) -> NDArray[np.float64]:
    """Return the share of each bin that each worker was busy; batches of a worker do not overlap.

    Returns:
        Shape (rows, bins).
    """
    shares = np.zeros((rows, edges_s.size - 1))
    for row in np.unique(workers).tolist():
        is_own = workers == row
        points_s = np.stack((starts_s[is_own], ends_s[is_own]), axis=-1)
        busy_s = np.cumsum(points_s[:, 1] - points_s[:, 0])
        reached_s = np.stack((np.append(0.0, busy_s[:-1]), busy_s), axis=-1)
        shares[row] = np.diff(np.interp(edges_s, points_s.ravel(), reached_s.ravel())) / np.diff(edges_s)
    return shares


def _colors(reasons: tuple[str, ...]) -> dict[str, str]:
    """Return each reason's color, in order of appearance; reasons of other policies share the rest of the cycle."""
    known = dict(zip(_REASONS, _COLORS, strict=False))
    rest = itertools.cycle(_COLORS[len(_REASONS) :])
    return {reason: known.get(reason) or next(rest) for reason in dict.fromkeys(reasons)}
