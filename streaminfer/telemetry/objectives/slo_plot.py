"""How an error budget is drawn: what was left of it over the period, and how fast it burned."""

from typing import Any

import numpy as np

from streaminfer._internal.extras import require

__all__ = ["plot_budget"]

_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
_UNITS_SHOWN = 2.0


def plot_budget(ax: Any, name: str, noted: list[tuple[int, int, int]], width_ns: int, allowed: float) -> Any:
    """Draws the remaining budget, and the burn rate on a twin axis.

    Args:
        ax: a matplotlib ``Axes``, or ``None`` for a new figure.
        name: of the objective.
        noted: instants in nanoseconds, ascending, each with the totals of all and of bad events up to it.
        width_ns: how far the instants are apart, the last one excepted.
        allowed: share of events that may be bad.

    Returns:
        The axes of the budget. Its line is 1 less the period's bad events up to an instant, over all that the period's
        events so far allow, so it ends at what ``budget_remaining`` says. The burn rate is one step per bucket.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="SLO.plot")
    if ax is None:
        pyplot = require("matplotlib.pyplot", extra="plot", purpose="SLO.plot")
        ax = pyplot.subplots()[1]
    at_ns, seen, bad = np.array(noted, np.float64).T
    ago_s = (at_ns - at_ns[-1]) / 1e9
    size_s, unit = next(((size, unit) for size, unit in _UNITS if -ago_s[0] >= _UNITS_SHOWN * size), (1.0, "seconds"))
    spent = (bad - bad[0]) / max(allowed * (seen[-1] - seen[0]), np.finfo(np.float64).tiny)
    events = np.diff(seen)
    rate = np.divide(np.diff(bad), events, out=np.zeros_like(events), where=events > 0) / allowed
    twin = ax.twinx()
    twin.stairs(rate, ago_s / size_s, fill=True, alpha=0.25, color="tab:red")
    twin.set_ylim(bottom=0.0)
    twin.set_ylabel(f"burn rate in {width_ns / 1e9:.3g} s")
    ax.plot(ago_s / size_s, 1.0 - spent, color="tab:blue")
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.margins(x=0.0)
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    ax.set_xlabel(f"{unit} from now")
    ax.set_ylabel("budget left")
    ax.set_title(name)
    ax.grid(visible=True, alpha=0.3)
    return ax
