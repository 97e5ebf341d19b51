"""Plot of a plan: a row per cluster and a column per site, with round trips and the shares of the requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer._internal.display.figures import BAD, new_axes, shown_name
from streaminfer._internal.loading.extras import require

__all__ = ["plot_height_in", "plot_matrix"]

_PURPOSE = "Plan.plot"
_ROWS = 30
_COLUMNS = 14
_UPRIGHT_COLUMNS = 6
"""Most sites with horizontal names; with more sites the names are vertical."""
_TALL_LABELS_IN = 1.0
_SMALL_PT = 7.0
_ROW_IN = 0.2
_LONGEST_NAME = 18
_LARGEST_MARK = 60.0
_HALF = 0.55
"""Part of the SLO above which a cell is so dark that a mark on it must be light."""


def plot_matrix(
    ax: Any,
    rtt_share: Mapping[str, Mapping[str, float]],
    shares: Mapping[str, Mapping[str, float]],
    sites: Mapping[str, str],
) -> Any:
    """Draw a cell for each cluster and site, darker the more of the SLO its round trip takes, and circles for requests.

    If there are many clusters, the plot shows those with the least room in their SLO; of many sites, the most used.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        rtt_share: the promised round-trip time over the SLO, by cluster and site; users do not reach other sites.
        shares: shares of each cluster's requests, by site.
        sites: text under each site's name: replicas, load, cost.

    Returns:
        The axes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    tightness = {cluster: _tightness(row, shares.get(cluster, {})) for cluster, row in rtt_share.items()}
    clusters = sorted(tightness, key=lambda cluster: -tightness[cluster])[:_ROWS]
    totals = {site: sum(row.get(site, 0.0) for row in shares.values()) for site in sites}
    columns = sorted(sites, key=lambda site: -totals[site])[:_COLUMNS]
    ax = new_axes(ax, _PURPOSE, height_in=plot_height_in(len(clusters), len(columns)))
    cells = np.array([[rtt_share[cluster].get(site, np.nan) for site in columns] for cluster in clusters])
    colors = require("matplotlib", extra="plot", purpose=_PURPOSE).colormaps["Blues"].with_extremes(over="#d9d9d9")
    image = ax.imshow(np.ma.masked_invalid(cells), cmap=colors, vmin=0.0, vmax=1.0, aspect="auto")
    _mark_shares(ax, cells, [[shares.get(cluster, {}).get(site, 0.0) for site in columns] for cluster in clusters])
    unserved = [at for at, cluster in enumerate(clusters) if not sum(shares.get(cluster, {}).values())]
    ax.plot([-0.5] * len(unserved), unserved, ">", color=BAD, clip_on=False, markersize=5)
    hidden = len(rtt_share) - len(clusters)
    ax.set_ylabel(f"and {hidden} clusters with more room" if hidden else "")
    ax.set_yticks(range(len(clusters)), [shown_name(name, _LONGEST_NAME) for name in clusters], fontsize="small")
    is_tall = len(columns) > _UPRIGHT_COLUMNS
    below = [sites[name].replace("\n", ", ") if is_tall else sites[name] for name in columns]
    labels = [
        f"{shown_name(name, _LONGEST_NAME if is_tall else 11)}\n{text}"
        for name, text in zip(columns, below, strict=True)
    ]
    ax.set_xticks(range(len(columns)), labels, fontsize=_SMALL_PT, rotation=90 if is_tall else 0)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title("circles: where requests go; grey: too far; triangles: not served", loc="left", fontsize="small")
    bar = ax.figure.colorbar(image, ax=ax, extend="max", pad=0.02, fraction=0.04)
    bar.set_label("round trip / SLO", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return ax


def plot_height_in(clusters: int, sites: int) -> float:
    """Return the height of the plot for a number of clusters and sites, in inches."""
    labels_in = _TALL_LABELS_IN if sites > _UPRIGHT_COLUMNS else 0.0
    return 1.5 + labels_in + _ROW_IN * min(max(clusters, 4), _ROWS)


def _tightness(row: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Return the part of the SLO that the round trip to the farthest used site takes; infinite if not served."""
    if not sum(shares.values()):
        return float("inf")
    return max(row.get(site, 0.0) for site, share in shares.items() if share > 0)


def _mark_shares(ax: Any, cells: Any, shares: Sequence[Sequence[float]]) -> None:
    marks = [
        (column, row, share, "white" if cells[row, column] > _HALF else "black")
        for row, line in enumerate(shares)
        for column, share in enumerate(line)
        if share > 0
    ]
    if marks:
        xs, ys, parts, colors = zip(*marks, strict=True)
        ax.scatter(xs, ys, s=[max(_LARGEST_MARK * part, 4.0) for part in parts], c=colors)
