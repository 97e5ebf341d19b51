"""The picture of the README is a figure of the demo's report, with one palette for light and one for dark screens."""

import runpy
from pathlib import Path
from xml.dom import minidom

import pytest

ROOT = Path(__file__).parents[2]
extract_picture = runpy.run_path(str(ROOT / "docs" / "demo_picture.py"))["extract_picture"]
REPORT = """<style>
:root { --page: #fff; --ink: #111; }
@media (prefers-color-scheme: dark) { :root { --page: #000; --ink: #eee; } }
</style>
<svg class="wide" xmlns="http://www.w3.org/2000/svg"><path style="stroke: var(--ink)"/></svg>
<svg class="narrow"></svg>"""


def test_picture_is_the_wide_form_with_both_palettes():
    """The picture is the first wide figure of the report, with both palettes."""
    picture = extract_picture(REPORT)

    minidom.parseString(picture)  # noqa: S318 - our own text, which must be well-formed
    assert "--ink: #111" in picture
    assert "@media (prefers-color-scheme: dark) { svg { --page: #000; --ink: #eee; } }" in picture
    assert "narrow" not in picture


def test_picture_needs_two_palettes():
    """A page with one palette cannot be drawn on dark screens."""
    with pytest.raises(ValueError, match=r"report: expected a figure and two palettes, got 1 palettes"):
        extract_picture(REPORT.partition("@media")[0] + REPORT.partition("</style>")[2])


def test_picture_of_the_readme_is_small():
    """The stored picture has both palettes and at most 150 kB."""
    picture = ROOT / "docs" / "images" / "demo.svg"

    assert picture.stat().st_size <= 150_000
    assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")
