"""Prints the lines of code of files and below folders, without docstrings, comments and blank lines.

``python docs/code_lines.py streaminfer/caching streaminfer/compliance streaminfer/http_edge``; without arguments it
prints a line for each family of the package.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

__all__ = ["count_lines"]

PACKAGE = Path(__file__).parents[1] / "streaminfer"
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def count_lines(source: str) -> int:
    """Return how many lines of a module hold code."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            documentation.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documentation)


def main() -> None:
    places = [Path(name) for name in sys.argv[1:]] or sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    total = 0
    for place in places:
        files = [place] if place.is_file() else place.rglob("*.py")
        count = sum(count_lines(path.read_text(encoding="utf-8")) for path in files)
        total += count
        print(f"{count:7,} {place}")
    print(f"{total:7,} together")


if __name__ == "__main__":
    main()
