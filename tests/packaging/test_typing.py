"""The types that a user's editor and type checker see."""

import re
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("typed_sample.py")
ROOT = Path(__file__).parents[2]


def test_a_typed_program():
    """mypy reports the expected error on each marked line of the sample, and no other error."""
    api = pytest.importorskip("mypy.api")
    arguments = ["--strict", "--show-error-codes", "--no-error-summary", "--hide-error-context", "--no-pretty"]
    # options and cache are those of `make check`, which has just read the package
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    python = ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]

    told, failure, _ = api.run([*arguments, *config, *python, str(SAMPLE)])

    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    expected = {
        (number, match[1]) for number, line in enumerate(lines, 1) if (match := re.search(r"# expect: (\S+)$", line))
    }
    found = {
        (int(match[1]), match[2])
        for match in re.finditer(r"^[^\n]*typed_sample\.py:(\d+): error: .*\[(\S+)\]$", told, re.MULTILINE)
    }
    assert not failure
    assert found == expected, told
