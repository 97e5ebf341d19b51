"""Parts of a machine that some tests need; tests whose part is missing are left out.

``@pytest.mark.needs("chromium")`` names a part. Tests that need a missing part are deselected, and the report says so;
with ``STREAMINFER_TEST_EVERYTHING=1``, as in CI, a missing part is an error. ``make test`` installs what it may.
"""

import os
import shutil

import pytest


def _missing_chromium():
    return [] if shutil.which("chromium") else ["apt-get install chromium"]


def _missing_image_builder():
    from image import missing_parts

    return missing_parts()


def _missing_namespaces():
    from servers import lossy_network

    return lossy_network.missing_parts()


def _missing_prometheus():
    return [] if shutil.which("prometheus") and shutil.which("promtool") else ["apt-get install prometheus"]


PARTS = {
    "an image builder": _missing_image_builder,
    "chromium": _missing_chromium,
    "network namespaces": _missing_namespaces,
    "prometheus": _missing_prometheus,
}


def missing():
    """Return the parts that this machine lacks, each with the commands or features that would provide it."""
    return {part: lacks for part, find in PARTS.items() if (lacks := find())}


def pytest_configure():
    # before xdist starts its workers, which could not report this
    if os.environ.get("STREAMINFER_TEST_EVERYTHING") == "1" and (lacking := missing()):
        parts = "; ".join(f"{part}: {', '.join(lacks)}" for part, lacks in lacking.items())
        raise pytest.UsageError(f"STREAMINFER_TEST_EVERYTHING=1, and this machine lacks {parts}")


def pytest_collection_modifyitems(config, items):
    lacking = missing()
    left_out = [item for item in items if any(set(mark.args) & set(lacking) for mark in item.iter_markers("needs"))]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter):
    for part, lacks in missing().items():
        terminalreporter.line(f"left out: tests that need {part}, which this machine lacks: {', '.join(lacks)}")
