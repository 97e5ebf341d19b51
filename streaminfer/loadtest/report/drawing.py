"""Inline SVG pictures that follow the page's color scheme, in a wide and a narrow form."""

import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

from streaminfer._internal.display.figures import BAD, COLORS, GOOD, GREY, inline_svg
from streaminfer._internal.loading.extras import require
from streaminfer.errors import MissingExtra

__all__ = ["STYLE_SHEET", "draw"]

_INK, _MUTED = "#01fe01", "#02fe02"
_VARIABLES = {_INK: "ink", _MUTED: "muted", COLORS[0]: "main", GOOD: "good", BAD: "bad", GREY: "muted"}
"""Colors of a picture, with the CSS variable of the page that replaces each."""
_STYLE: dict[str, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none",
    "font.size": 9, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _MUTED, "xtick.color": _MUTED,
    "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "grid.color": _MUTED,
}  # fmt: skip
_WIDTHS_IN = {"wide": 8.4, "narrow": 4.1}
_FONTS = re.compile(r"(font: [^;\"]*?px )[^;\"]*")
_marks = itertools.count()

STYLE_SHEET = """
:root { --page: #fff; --ink: #1f2328; --muted: #7d858e; --line: #d9dde2; --main: #1769b5; --good: #2c8a4b;
  --bad: #c9541c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e3e7eb; --muted: #8f98a1; --line: #333a42; --main: #63aef2; --good: #5fc47e;
    --bad: #f08b57; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 1.5rem auto 3rem; padding: 0 1rem;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0; }
p { margin: 0.5rem 0; }
.headline { font-size: 1.5rem; line-height: 1.3; font-weight: 650; margin: 0.25rem 0 1rem; }
svg { width: 100%; height: auto; display: block; }
svg.narrow { display: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.5rem 0; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); font-size: 0.85rem; color: var(--muted); }
@media (max-width: 40rem) {
  .headline { font-size: 1.25rem; }
  svg.wide { display: none; }
  svg.narrow { display: block; }
}
"""


def draw(plot: Callable[[Any], Any], label: str, *, height_in: float = 3.2) -> str:
    """Return a picture in both forms, of which the page shows one; empty if matplotlib is not installed.

    Args:
        plot: draws on given axes.
        label: alternative text, for readers who cannot see the picture.
        height_in: height in inches.
    """
    try:
        matplotlib = require("matplotlib", extra="plot", purpose="a picture")
    except MissingExtra:
        return ""  # the tables have the figures
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # the SVG contains text, not outlines: a glyph that matplotlib's font lacks is in one of the reader's fonts
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        pictures = [
            inline_svg(plot, label, width_in=width_in, height_in=height_in, attributes=f'class="{layout}"')
            for layout, width_in in _WIDTHS_IN.items()
        ]
    return "".join(map(_in_page_colors, pictures))


def _in_page_colors(drawn: str) -> str:
    mark = f"p{next(_marks)}-"  # two pictures may have the same identifiers
    drawn = re.sub(r'\bid="', f'id="{mark}', drawn)
    drawn = re.sub(r'href="#', f'href="#{mark}', drawn)
    drawn = re.sub(r"url\(#", f"url(#{mark}", drawn)
    for color, variable in _VARIABLES.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    return _FONTS.sub(r"\1system-ui, sans-serif", drawn)
