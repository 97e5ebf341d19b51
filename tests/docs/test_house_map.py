"""The map of the code is what `docs/house_map.py` draws from the code of today."""

import runpy
from pathlib import Path

DRAWING = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "house_map.py"))


def test_map_is_up_to_date():
    """The page equals a fresh drawing; `python docs/house_map.py` writes it."""
    assert DRAWING["PAGE"].read_text(encoding="utf-8") == DRAWING["draw_map"]()


def test_map_names_every_folder_and_layer():
    """Each folder with modules has a row, and each name of the import contract a line."""
    page = DRAWING["draw_map"]()

    assert "| `streaminfer/batching/planner/` |" in page
    assert "`batching`" in page.partition("## What may import what")[2]
