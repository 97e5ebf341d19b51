"""Every notebook of the documentation runs from top to bottom, on the models of the examples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    """Each cell succeeds, the notebook draws at least one figure, and no displayed HTML reaches 600 kB."""
    command = [sys.executable, ROOT / "tests" / "support" / "run_notebook.py", path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    cells = [json.loads(line) for line in ran.stdout.splitlines()]
    assert cells[-1]["figures"] >= 1
    assert max(size for cell in cells for size in (0, *cell["html"])) < 600_000
    if path.stem == "what-a-cache-saves":
        assert any("saved by the cache: " in cell["printed"] for cell in cells)
    if path.stem == "what-a-request-cost":
        assert "0\n" in [cell["printed"] for cell in cells]  # busy, padding and idle time minus the bill
