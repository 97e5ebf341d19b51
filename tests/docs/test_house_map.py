"""The map of the code is current, and the folders and modules that it lists are small."""

import runpy
from pathlib import Path

import pytest

DRAWING = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "house_map.py"))
FOLDERS = sorted({module.parent for module in DRAWING["PACKAGE"].rglob("*.py")})


def test_map_is_up_to_date():
    """The page equals a new drawing; `python docs/house_map.py` writes it."""
    assert DRAWING["PAGE"].read_text(encoding="utf-8") == DRAWING["draw_map"]()


def test_map_names_every_folder_and_layer():
    """The map has a row for the folder `planner`, and the import contract in it names the layer `batching`."""
    page = DRAWING["draw_map"]()

    assert "| `streaminfer/batching/planner/` |" in page
    assert "`batching`" in page.partition("## What may import what")[2]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda it: it.name)
def test_folders_and_modules_are_small(folder):
    """A folder has at most 15 modules, and each of them has at most 450 lines."""
    modules = list(folder.glob("*.py"))

    assert len(modules) <= 15
    assert max(len(module.read_text(encoding="utf-8").splitlines()) for module in modules) <= 450
