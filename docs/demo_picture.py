"""Saves the first figure of the demo's report as one SVG that follows the reader's color scheme.

``make demo && python docs/demo_picture.py report.html docs/images/demo.svg``
"""

import re
import sys
from pathlib import Path

__all__ = ["extract_picture"]

FIGURE = re.compile(r'<svg class="wide".*?</svg>', re.DOTALL)
PALETTE = re.compile(r":root \{(.*?)\}", re.DOTALL)
"""The page defines its colors twice: for light screens, then for dark ones."""


def extract_picture(report: str) -> str:
    """Return the wide form of the first figure, with both palettes of the page.

    Args:
        report: HTML that ``examples/live_demo.py`` wrote.

    Raises:
        ValueError: the page has no such figure, or other than two palettes.
    """
    figure, palettes = FIGURE.search(report), PALETTE.findall(report)
    if figure is None or len(palettes) != 2:
        raise ValueError(f"report: expected a figure and two palettes, got {len(palettes)} palettes (HTML of the demo)")
    light, dark = (" ".join(palette.split()) for palette in palettes)
    dark = f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    style = f"<style>svg {{ {light} background: var(--page) }} {dark}</style>"
    picture = figure[0].replace(">", f">{style}", 1)
    return re.sub(r" +$", "", picture, flags=re.MULTILINE) + "\n"


def main(report: str, picture: str) -> None:
    """Read the report and write the picture."""
    Path(picture).write_text(extract_picture(Path(report).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
