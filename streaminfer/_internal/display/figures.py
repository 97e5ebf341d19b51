"""Shared style of pictures: size, colors, legend, inline SVG; matplotlib is loaded at first use."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.units import format_duration
from streaminfer.errors import MissingExtra

__all__ = [
    "BAD",
    "COLORS",
    "GOOD",
    "GREY",
    "draw_placeholder",
    "in_decades",
    "in_seconds",
    "inline_svg",
    "legend_above",
    "new_axes",
    "shown_name",
    "time_unit",
]

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's palette, which color-blind readers tell apart."""
GOOD, BAD, GREY = "#009e73", "#d55e00", "#999999"
_WIDTH_IN = 7.2
_HEIGHT_IN = 3.2
_LETTERS_PER_INCH = 12.0
_HANDLE_LETTERS = 7
_KILO = 999.5
_TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
_UNITS_SHOWN = 2.0


def new_axes(ax: Any, purpose: str, *, height_in: float = _HEIGHT_IN) -> Any:
    """Return axes in the shared style.

    Args:
        ax: the user's matplotlib ``Axes``; ``None``: make a figure.
        purpose: the feature that needs matplotlib, for the error message.
        height_in: height of a new figure, in inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib.ticker", extra="plot", purpose=purpose)
    if ax is None:
        pyplot = require("matplotlib.pyplot", extra="plot", purpose=purpose)
        ax = pyplot.subplots(figsize=(_WIDTH_IN, height_in), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(visible=True, alpha=0.3)
    return ax


def legend_above(ax: Any) -> None:
    """Put the legend above the axes, in as many columns as fit; without labeled artists, do nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    letters = ax.bbox.width / ax.figure.dpi * _LETTERS_PER_INCH
    columns = max(1, int(letters // (max(map(len, labels)) + _HANDLE_LETTERS)))
    ax.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.01), borderaxespad=0.0, frameon=False,
        ncols=min(columns, len(labels)), fontsize="small", handlelength=1.4, columnspacing=1.4,
    )  # fmt: skip


def draw_placeholder(ax: Any, text: str) -> None:
    """Write the reason why the axes are empty into them."""
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=GREY)


def in_seconds(axis: Any) -> None:
    """Label an axis of durations: ``50 ms``, ``2.5 s``, ``3,600 s``.

    Args:
        axis: ``ax.xaxis`` or ``ax.yaxis``.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="a plot")
    small = ticker.EngFormatter(unit="s")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _seconds(value) or small(value)))


def _seconds(value: float) -> str:
    """Return a duration of at least 1,000 s, which ``EngFormatter`` would write in ks; empty for a shorter one."""
    return f"{value:,.0f} s" if abs(value) >= _KILO else ""


def in_decades(axis: Any, low_s: float, high_s: float) -> None:
    """Make a logarithmic axis of durations from a decade's start to a decade's end, one label per decade.

    Args:
        axis: ``ax.xaxis`` or ``ax.yaxis``.
        low_s: the smallest duration, in seconds.
        high_s: the largest duration, in seconds.
    """
    ticker = require("matplotlib.ticker", extra="plot", purpose="a plot")
    low, high = np.floor(np.log10(low_s)), np.ceil(np.log10(high_s))
    decades = np.arange(low, max(high, low + 1) + 1)
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (10.0 ** decades[0], 10.0 ** decades[-1])})
    axis.set_major_locator(ticker.FixedLocator(10.0**decades))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _seconds(value) or format_duration(value)))
    axis.set_minor_formatter(ticker.NullFormatter())


def shown_name(name: str, longest: int = 32) -> str:
    """Return a user's name for a picture: at most ``longest`` characters, cut in the middle, never a formula."""
    name = name.encode("utf-8", "backslashreplace").decode()  # matplotlib cannot draw half of a surrogate pair
    if len(name) > longest:
        ends = (longest - 1) // 2
        name = f"{name[: longest - 1 - ends]}…{name[-ends:]}"
    return name.replace("$", r"\$")  # matplotlib reads text between two of these as a formula


def time_unit(span_s: float) -> tuple[float, str]:
    """Return the seconds and the name of the largest unit that fits at least twice into a time span."""
    return next(((size, unit) for size, unit in _TIME_UNITS if span_s >= _UNITS_SHOWN * size), (1.0, "seconds"))


def inline_svg(
    draw: Callable[[Any], Any],
    label: str,
    *,
    width_in: float = _WIDTH_IN,
    height_in: float = _HEIGHT_IN,
    attributes: str = 'style="max-width:100%;height:auto"',
) -> str:
    """Return a picture as SVG for an HTML page; empty if matplotlib is not installed.

    Args:
        draw: draws on the axes that it gets.
        label: description of the picture for readers who cannot see it.
        width_in: in inches.
        height_in: in inches.
        attributes: attributes of the SVG element.
    """
    try:
        figure = require("matplotlib.figure", extra="plot", purpose="a picture")
    except MissingExtra:
        return ""  # the table beside it has the figures
    from html import escape  # noqa: PLC0415 - a notebook's need, not every import's

    drawn = figure.Figure(figsize=(width_in, height_in), layout="constrained")
    draw(drawn.subplots())
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    named = f'<svg role="img" aria-label="{escape(label)}" {attributes} '
    return svg[svg.index("<svg") :].replace("<svg ", named, 1)
