"""The page of metrics is that of the code."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_metrics_page_is_current():
    """`python docs/metrics_page.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("metrics_page", DOCS / "metrics_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.draw() == (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
