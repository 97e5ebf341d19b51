"""Draws `docs/reference/metrics.md` from the table of metrics: ``python docs/metrics_page.py``."""

from pathlib import Path

from streaminfer.telemetry.exporters.metric import Metric
from streaminfer.telemetry.exporters.names import METRICS, STACK_STATE

PAGE = Path(__file__).parent / "reference" / "metrics.md"

HEAD = """# Metrics

This page is drawn from the code by `python docs/metrics_page.py`; do not edit it.
[Prometheus](../how-to/prometheus.md) and [OpenTelemetry](../how-to/opentelemetry.md) get the same metrics.

* In OpenTelemetry the name is `streaminfer.` and the dotted name; the unit is `s`, `By` or `1`.
* In Prometheus a counter ends in `_total`, and a histogram is native and classic.
* Each series has `service`, the name of the outermost `Telemetry`, and `layer`, the place in the stack.
* Routes, replicas, tiers, sides and objectives add `route`, `replica`, `tier`, `side` and `slo`.
* Devices, models and streams add `device`, `model` and `stream`; a `Telemetry` adds its `labels`, a bill `currency`.
* Reasons, classes of errors and other keys of a statistic have at most 64 series; further ones are summed as `other`.
* A number that is not known is left out.

| statistics | name in Prometheus | dotted name | kind | label | meaning |
|---|---|---|---|---|---|
"""


def draw() -> str:
    """Return the page."""
    rows = [_row("StackStatistics", STACK_STATE)]
    seen = {STACK_STATE}
    for statistics, metrics in METRICS.items():
        rows += [_row(statistics, metric) for metric in metrics if metric not in seen]
        seen.update(metrics)
    return HEAD + "\n".join(rows) + "\n"


def _row(statistics: str, metric: Metric) -> str:
    label = f"`{metric.label}`" if metric.label else ""
    name = f"`{metric.prometheus}`"
    return f"| `{statistics}` | {name} | `{metric.name}` | {metric.kind} | {label} | {metric.help} |"


if __name__ == "__main__":
    PAGE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PAGE}")
