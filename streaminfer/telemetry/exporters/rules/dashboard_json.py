"""`grafana_dashboard`: a dashboard for all services, as JSON for Grafana's import."""

import json
from typing import Any

from streaminfer._internal.validation import check_instance
from streaminfer.telemetry.exporters.names import METRICS
from streaminfer.telemetry.exporters.rules.queries import slug

__all__ = ["grafana_dashboard"]

_SELECTED = 'service=~"$service"'
_WIDTH, _HEIGHT = 12, 8
_SIZE = {"w": _WIDTH, "h": _HEIGHT}
_MAX_UID = 40  # characters, a limit of Grafana
_METRICS = {metric.name: metric for listed in METRICS.values() for metric in listed}


def grafana_dashboard(title: str = "streaminfer") -> str:
    """Return a dashboard with tail latency, outcomes, queue, batches, rejections, cache, routes, budget, streams, cost.

    The dashboard needs Prometheus with native histograms. Grafana prompts for the data source on import. A variable
    selects services.

    Args:
        title: title of the dashboard; an imported dashboard replaces one with the same title.

    Raises:
        TypeError: ``title`` is not a string.
    """
    check_instance("title", title, str, "a string")
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
        "panels": [
            panel | {"id": at + 1, "gridPos": {"x": at % 2 * _WIDTH, "y": at // 2 * _HEIGHT, **_SIZE}}
            for at, panel in enumerate(_panels())
        ],
    }
    return json.dumps(dashboard, indent=2) + "\n"


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panels() -> list[dict[str, Any]]:
    limits = _rate("limit.rejected", "reason"), "{{service}} limit: {{reason}}"
    state = _METRICS["breaker.state"].prometheus
    open_breakers = (
        f'max by (service, layer, state) ({state}{{{_SELECTED}, state!="closed"}})',
        "{{service}} {{layer}} {{state}}",
    )
    batch_size = f"{_rate('batcher.rows')} / {_rate('batcher.batches')}", "{{service}}"
    latency = [(_quantile("request.duration", q)[0], f"{{{{service}}}} p{100 * q:g}") for q in _SHARES]
    return [
        _panel("Latency", "s", *latency),
        _panel("Parts of the latency, p99", "s", _quantile("request.part.duration", 0.99, "part")),
        _panel("Requests", "reqps", _counter("requests", "outcome")),
        _panel("Queued and running", "short", _gauge("batcher.queued"), _gauge("batcher.running")),
        _panel("Error budget left", "percentunit", _gauge("slo.budget_remaining", "slo"), highest=1.0),
        _panel("Burn rate", "short", _gauge("slo.burn_rate", "slo", "window")),
        _panel("Rejections", "reqps", _counter("batcher.rejected", "reason"), limits),
        _panel("Mean batch size", "short", batch_size),
        _panel("Batches by reason", "ops", _counter("batcher.batches", "reason")),
        _panel("Cache lookups", "ops", _counter("cache.lookups", "result")),
        _panel("Breakers that are not closed", "short", open_breakers, highest=1.0),
        _panel("Share of each route", "percentunit", _gauge("route.share", "route"), highest=1.0),
        _panel("Degraded responses", "reqps", _counter("router.fallbacks", "reason")),
        _panel("Age of stream results, p99", "s", _quantile("session.result.age", 0.99)),
        _panel("Frames dropped", "ops", _counter("session.dropped", "reason")),
        _panel("Bill by use", "short", _counter("cost.bill", "use")),
        _panel("Cost of 1,000 responses on time", "short", _gauge("cost.per_1000_on_time")),
        _panel("Replicas ejected", "short", _gauge("replicas.ejected")),
    ]


_SHARES = (0.5, 0.9, 0.99, 0.999)
_Query = tuple[str, str]
"""Expression and legend."""


def _counter(name: str, *by: str) -> _Query:
    return _rate(name, *by), _legend(*by)


def _quantile(name: str, q: float, *by: str) -> _Query:
    return f"histogram_quantile({q:g}, {_rate(name, *by)})", _legend(*by)


def _gauge(name: str, *by: str) -> _Query:
    function = "avg" if _METRICS[name].unit == "ratio" else "sum"
    expression = f"{function} by ({', '.join(('service', *by))}) ({_METRICS[name].prometheus}{{{_SELECTED}}})"
    return expression, _legend(*by) if by else f"{_legend()} {name.rpartition('.')[2]}"


def _rate(name: str, *by: str) -> str:
    rate = f"rate({_METRICS[name].prometheus}{{{_SELECTED}}}[$__rate_interval])"
    return f"sum by ({', '.join(('service', *by))}) ({rate})"


def _legend(*by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in ("service", *by))


def _panel(title: str, unit: str, *queries: _Query, highest: float | None = None) -> dict[str, Any]:
    return {
        "title": title,
        "type": "timeseries",
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, **({} if highest is None else {"max": highest})},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(queries)
        ],
    }
