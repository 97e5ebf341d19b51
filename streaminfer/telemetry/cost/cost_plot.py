"""Plot of a bill: one bar per model, divided into rows, set-up and padding, and one bar for idle time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streaminfer._internal.display.figures import COLORS, GREY, draw_placeholder, legend_above, new_axes, shown_name
from streaminfer._internal.loading.extras import require

if TYPE_CHECKING:
    from streaminfer.telemetry.cost.statistics import CostRow

__all__ = ["plot_cost"]

_MODELS = 11
_BAR_IN = 0.32
_PARTS = {"rows": COLORS[2], "set-up": COLORS[0], "padding": COLORS[1]}


def plot_cost(ax: Any, models: Mapping[str, "CostRow"], idle: float, currency: str) -> Any:
    """Draw the cost of each model, the most expensive on top; the cheapest of more than 11 models share a bar.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        models: rows of the models by name.
        idle: cost of the time without a batch.
        currency: currency of all amounts.

    Returns:
        The axes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    rows: list[tuple[str, tuple[float, ...]]] = [
        (shown_name(name), (row.cost - row.setup, row.setup, row.padding)) for name, row in models.items()
    ]
    rows.sort(key=lambda row: -sum(row[1]))
    if len(rows) > _MODELS:
        rest = [parts for _, parts in rows[_MODELS - 1 :]]
        rows[_MODELS - 1 :] = [(f"{len(rest)} others", tuple(map(sum, zip(*rest, strict=True))))]
    ticker = require("matplotlib.ticker", extra="plot", purpose="CostStatistics.plot")
    ax = new_axes(ax, "CostStatistics.plot", height_in=1.3 + _BAR_IN * (len(rows) + 1))
    left = [0.0] * len(rows)
    for at, (label, color) in enumerate(_PARTS.items()):
        widths = [parts[at] for _, parts in rows]
        ax.barh(range(len(rows)), widths, left=left, color=color, label=label if rows else None)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    ax.barh([len(rows)], [idle], color=GREY)
    ax.set_yticks(range(len(rows) + 1), [*(name for name, _ in rows), "idle"], fontsize="small")
    ax.set_ylim(len(rows) + 0.6, -0.6)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    formatter = ticker.EngFormatter(unit=currency)
    ax.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda amount, _: f"{amount:,.0f} {currency}" if amount >= 1000.0 else formatter(amount))
    )
    longest = max([idle, *left])  # 0.0 while the very first batch runs
    ax.set_xlim(0.0, 1.05 * longest or 1.0)
    if not longest:
        draw_placeholder(ax, "nothing to pay yet")
    legend_above(ax)
    return ax
