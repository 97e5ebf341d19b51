"""What a machine must have for some tests, which are left out where it is not.

``@pytest.mark.needs("chromium")`` names a part. Tests that need a missing one are deselected, and the report says so;
with ``STREAMINFER_TEST_EVERYTHING=1``, as in CI, that is an error instead. ``make test`` installs what it may.
"""

import os
import shutil

import pytest


def _missing_chromium():
    return [] if shutil.which("chromium") else ["apt-get install chromium"]


def _missing_prometheus():
    return [] if shutil.which("prometheus") and shutil.which("promtool") else ["apt-get install prometheus"]


PARTS = {"chromium": _missing_chromium, "prometheus": _missing_prometheus}


def missing():
    """The parts that this machine lacks, and what would give them."""
    return {part: lacks for part, find in PARTS.items() if (lacks := find())}


def pytest_collection_modifyitems(config, items):
    lacking = missing()
    left_out = [item for item in items if any(set(mark.args) & set(lacking) for mark in item.iter_markers("needs"))]
    if left_out and os.environ.get("STREAMINFER_TEST_EVERYTHING") == "1":
        raise pytest.UsageError(f"{len(left_out)} tests would be left out: this machine lacks {lacking}")
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter):
    for part, lacks in missing().items():
        terminalreporter.line(f"left out: tests that need {part}, which this machine lacks: {', '.join(lacks)}")
