"""Counting of lines of code."""

import runpy
from pathlib import Path

COUNT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "code_lines.py"))["count_lines"]

SOURCE = '''"""A module.

Of two paragraphs.
"""

TEXT = """one
two"""


def add(one, two):  # no line of its own
    """A docstring."""
    # a comment
    return (
        one
        + two
    )
'''


def test_docstrings_comments_and_blanks_are_no_code():
    """Docstrings, comments and blank lines are not counted as lines of code."""
    assert COUNT(SOURCE) == 2 + 1 + 4
