"""Draws the map of the code: every folder with the first line of its docstring, and what may import what.

``python docs/house_map.py`` writes ``docs/reference/house.md``; a test checks that the page is current.
"""

import ast
import re
import tomllib
from pathlib import Path

__all__ = ["PAGE", "draw_map"]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streaminfer"
PAGE = ROOT / "docs" / "reference" / "house.md"
ROLE = re.compile(r":\w+:`")
"""A role of reStructuredText before a name."""
HEAD = """# Map of the code

This page is drawn from the code by `python docs/house_map.py`; do not edit it.
The text is the first line of the docstring of the folder or module.

## Folders

| folder or module | contents |
|---|---|
"""
IMPORTS = """
## What may import what

A line may import the lines below it and never one above; names on one line do not import each other.
`lint-imports` checks this contract of `pyproject.toml`, and that state machines import no event loop, thread or clock.

"""


def draw_map() -> str:
    """Return the page as Markdown."""
    folders = sorted({module.parent for module in PACKAGE.rglob("*.py")})
    rows = [_row(folder) for folder in folders]
    files = [
        f"| `streaminfer/{file.name}` | {_first_line(file)} |"
        for file in sorted(PACKAGE.glob("*.py"))
        if file.name != "__init__.py"
    ]
    layers = [f"{number}. {_names(layer)}" for number, layer in enumerate(_read_layers(), start=1)]
    return HEAD + "\n".join([*rows, *files]) + "\n" + IMPORTS + "\n".join(layers) + "\n"


def _row(folder: Path) -> str:
    return f"| `{folder.relative_to(ROOT).as_posix()}/` | {_first_line(folder / '__init__.py')} |"


def _first_line(file: Path) -> str:
    if not file.exists():
        return ""
    lines = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()
    return ROLE.sub("`", lines[0]).replace("|", "\\|") if lines else ""


def _read_layers() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers: list[str] = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return layers


def _names(layer: str) -> str:
    return " · ".join(f"`{name.strip().removeprefix('streaminfer.')}`" for name in layer.split("|"))


if __name__ == "__main__":
    PAGE.write_text(draw_map(), encoding="utf-8")
