"""The page of metrics."""

import importlib.util
import re
from pathlib import Path

from streaminfer.telemetry.exporters.names import INNER

DOCS = Path(__file__).parents[2] / "docs"


def test_metrics_page_is_current():
    """The page is current: `python docs/metrics_page.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("metrics_page", DOCS / "metrics_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.draw() == (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")


def test_metrics_page_names_inner_labels():
    """The introduction of the metrics page names every label of the inner statistics.

    Their series have these labels beside `service` and `layer`, which all series have.
    """
    head = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8").partition("\n| ")[0]

    assert {label for inner in INNER.values() for _, label in inner if label} <= set(re.findall(r"`(\w+)`", head))
