"""`grafana_dashboard`: a dashboard for all services, as JSON for Grafana's import."""

import json
from typing import Any, NamedTuple

from streaminfer._internal.validation import check_instance
from streaminfer.telemetry.exporters.names import METRICS
from streaminfer.telemetry.exporters.rules.queries import slug

__all__ = ["grafana_dashboard"]

_SELECTED = 'service=~"$service"'
_WIDTH, _HEIGHT = 12, 8
_MAX_UID = 40  # characters, a limit of Grafana
_METRICS = {metric.name: metric for listed in METRICS.values() for metric in listed}


class _Panel(NamedTuple):
    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]  # expression and legend
    highest: float | None = None


def grafana_dashboard(title: str = "streaminfer") -> str:
    """Return a dashboard with tail latency, outcomes, queue, batches, rejections, cache, routes, budget, streams, cost.

    The dashboard needs Prometheus with native histograms. Grafana prompts for the data source on import. A variable
    selects services.

    Args:
        title: title of the dashboard; an imported dashboard replaces one with the same title.

    Raises:
        TypeError: ``title`` is not a string.
    """
    check_instance("title", title, lambda it: isinstance(it, str), "a string")
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "service",
            "label": "Service",
            "type": "query",
            "datasource": _DATASOURCE,
            "query": f"label_values({_METRICS['requests.in_flight'].prometheus}, service)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
        },
    ]
    dashboard = {
        "title": title,
        "uid": slug(title)[:_MAX_UID],  # another title makes another dashboard
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(position, panel) for position, panel in enumerate(_panels())],
    }
    return json.dumps(dashboard, indent=2) + "\n"


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panels() -> list[_Panel]:
    limits = _rate("limit.rejected", "reason"), "{{service}} limit: {{reason}}"
    state = _METRICS["breaker.state"].prometheus
    open_breakers = (
        f'max by (service, layer, state) ({state}{{{_SELECTED}, state!="closed"}})',
        "{{service}} {{layer}} {{state}}",
    )
    return [
        _Panel(
            "Latency", "s", tuple((_quantile("request.duration", q), f"{{{{service}}}} p{100 * q:g}") for q in _SHARES)
        ),
        _Panel(
            "Parts of the latency, p99",
            "s",
            ((_quantile("request.part.duration", 0.99, "part"), "{{service}} {{part}}"),),
        ),
        _Panel("Requests", "reqps", ((_rate("requests", "outcome"), "{{service}} {{outcome}}"),)),
        _Panel("Queued and running", "short", (_gauge("batcher.queued"), _gauge("batcher.running"))),
        _Panel("Error budget left", "percentunit", (_gauge("slo.budget_remaining", "slo"),), 1.0),
        _Panel("Burn rate", "short", (_gauge("slo.burn_rate", "slo", "window"),)),
        _Panel("Rejections", "reqps", ((_rate("batcher.rejected", "reason"), "{{service}} {{reason}}"), limits)),
        _Panel("Mean batch size", "short", ((f"{_rate('batcher.rows')} / {_rate('batcher.batches')}", "{{service}}"),)),
        _Panel("Batches by reason", "ops", ((_rate("batcher.batches", "reason"), "{{service}} {{reason}}"),)),
        _Panel("Cache lookups", "ops", ((_rate("cache.lookups", "result"), "{{service}} {{result}}"),)),
        _Panel("Breakers that are not closed", "short", (open_breakers,), 1.0),
        _Panel("Share of each route", "percentunit", (_gauge("route.share", "route"),), 1.0),
        _Panel("Degraded responses", "reqps", ((_rate("router.fallbacks", "reason"), "{{service}} {{reason}}"),)),
        _Panel("Age of stream results, p99", "s", ((_quantile("session.result.age", 0.99), "{{service}}"),)),
        _Panel("Frames dropped", "ops", ((_rate("session.dropped", "reason"), "{{service}} {{reason}}"),)),
        _Panel("Bill by use", "short", ((_rate("cost.bill", "use"), "{{service}} {{use}}"),)),
        _Panel("Cost of 1,000 responses on time", "short", (_gauge("cost.per_1000_on_time"),)),
        _Panel("Replicas ejected", "short", (_gauge("replicas.ejected"),)),
    ]


_SHARES = (0.5, 0.9, 0.99, 0.999)


def _quantile(name: str, q: float, *by: str) -> str:
    return f"histogram_quantile({q:g}, {_rate(name, *by)})"


def _rate(name: str, *by: str) -> str:
    rate = f"rate({_METRICS[name].prometheus}{{{_SELECTED}}}[$__rate_interval])"
    return f"sum by ({', '.join(('service', *by))}) ({rate})"


def _gauge(name: str, *by: str) -> tuple[str, str]:
    labels = ("service", *by)
    expression = f"sum by ({', '.join(labels)}) ({_METRICS[name].prometheus}{{{_SELECTED}}})"
    if _METRICS[name].unit == "ratio":
        expression = expression.replace("sum by", "avg by", 1)
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return expression, legend if by else f"{legend} {name.rpartition('.')[2]}"


def _panel(position: int, panel: _Panel) -> dict[str, Any]:
    row, column = divmod(position, 2)
    return {
        "id": position + 1,
        "title": panel.title,
        "type": "timeseries",
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({} if panel.highest is None else {"max": panel.highest})},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }
