"""Tests that need a program are deselected if the machine lacks it, and the report says so."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDY = "tests/examples/test_webrtc_page.py"


@pytest.fixture
def collect(clean_environment, tmp_path):
    """Return a function that collects a test file on a machine without programs."""

    def run(**environment):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", NEEDY]
        variables = clean_environment(PATH=str(tmp_path), **environment)
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)

    return run


def test_missing_browser_is_named(collect):
    """The report counts the deselected tests, and names the missing program and the command that installs it."""
    done = collect(STREAMINFER_TEST_EVERYTHING="0")
    assert "2 deselected" in done.stdout
    assert "left out: tests that need chromium, which this machine lacks: apt-get install chromium" in done.stdout, (
        done.stdout
    )


def test_ci_leaves_nothing_out(collect):
    """A missing program is an error in CI."""
    done = collect(STREAMINFER_TEST_EVERYTHING="1")
    assert done.returncode != 0
    assert "chromium: apt-get install chromium; " in done.stdout + done.stderr
    assert "STREAMINFER_TEST_EVERYTHING=1" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
