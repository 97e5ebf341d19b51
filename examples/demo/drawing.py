"""Figures as SVG inside a page: colors that follow the page's color scheme, and a wide and a narrow form of each."""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BATCHED", "GOOD", "INK", "MUTED", "SHARED_COLOR", "UNBATCHED_COLOR", "Size", "draw", "legend_above", "new"]

# placeholder colors that no figure uses otherwise; the page replaces each by a CSS variable for both color schemes
INK, MUTED, BATCHED, UNBATCHED_COLOR, SHARED_COLOR, GOOD = (f"#0{n}fe0{n}" for n in range(1, 7))
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    BATCHED: "batched",
    UNBATCHED_COLOR: "unbatched",
    SHARED_COLOR: "shared",
    GOOD: "good",
    # what the library's own plots use
    "#000000": "ink",
    "#ffffff": "page",
    "#1f77b4": "batched",
    "#d62728": "unbatched",
}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
FONTS = re.compile(r"(font: [^;\"]*?px )[^;\"]*")


class Size(NamedTuple):
    """Width of a figure in inches, and whether it is the narrow form for a phone."""

    width: float
    narrow: bool


SIZES = {"wide": Size(8.4, narrow=False), "narrow": Size(4.1, narrow=True)}


def draw(make_figure: Callable[[Size], Figure], label: str) -> str:
    """Return both forms of a figure as inline SVG; the page shows one of them.

    Args:
        make_figure: makes one form.
        label: description of the figure for screen readers.
    """
    with mpl.rc_context(STYLE):
        return "".join(_svg(make_figure(size), name, label) for name, size in SIZES.items())


def new(
    size: Size, height: float, rows: int = 1, columns: int = 1, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; the narrow form has one column.

    Args:
        size: size of the form.
        height: height of a row, in inches.
        rows: rows of axes.
        columns: columns of axes.
        sharex: use one horizontal scale for all axes.
        sharey: use one vertical scale for all axes.
    """
    if size.narrow:
        rows, columns = rows * columns, 1
    figure = Figure(figsize=(size.width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.ravel())


def legend_above(axes: Axes, columns: int = 1) -> None:
    """Put the legend above the axes, where it hides no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.0,
    )


def _svg(figure: Figure, name: str, label: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, dpi=110)
    drawn = text.getvalue()
    # SVG inside a page needs no prologue; identifiers get a mark, because two figures may use the same ones
    mark = f"f{abs(hash(drawn)):x}-"
    drawn = drawn[drawn.index("<svg") :].replace("<svg ", f'<svg class="{name}" role="img" aria-label="{label}" ', 1)
    drawn = re.sub(r'\bid="', f'id="{mark}', drawn)
    drawn = re.sub(r'href="#', f'href="#{mark}', drawn)
    drawn = re.sub(r"url\(#", f"url(#{mark}", drawn)
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    return FONTS.sub(r"\1system-ui, sans-serif", drawn)
