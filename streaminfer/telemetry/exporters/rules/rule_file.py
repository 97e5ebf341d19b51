"""`alert_rules`: the burn-rate alerts of objectives as Prometheus rules."""

from typing import Any

from streaminfer.telemetry.exporters.collection import label_value
from streaminfer.telemetry.exporters.rules.queries import bad_events, check_slos, duration, events, number
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml
from streaminfer.telemetry.objectives.alerts import AlertPair
from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["alert_rules"]

_RATIO = "streaminfer:slo_bad:ratio_rate"


def alert_rules(*slos: SLO) -> str:
    """Return a Prometheus rule file with the alerts of ``slo.alerts()``, over all servers together.

    For each window of its alert pairs, an objective has a recording rule with the share of bad events. For each pair it
    has an alert that fires while both windows burn and the long window has ``minimum_events``. The labels of an alert
    are ``slo``, ``severity`` and ``window``, the long window.

    Args:
        slos: objectives of any number of services, with different names.

    Raises:
        TypeError, ValueError: there is no objective, an argument is not an `SLO`, or two have the same name.
    """
    check_slos(slos)
    groups = [{"name": f"streaminfer SLO {label_value(slo.name)}", "rules": _rules(slo)} for slo in slos]
    return to_yaml({"groups": groups})


def _rules(slo: SLO) -> list[dict[str, Any]]:
    windows_s = sorted({seconds for pair in slo.alert_pairs for seconds in (pair.short_s, pair.long_s)})
    return [_recording(slo, seconds) for seconds in windows_s] + [_alert(slo, pair) for pair in slo.alert_pairs]


def _recording(slo: SLO, window_s: float) -> dict[str, Any]:
    window = duration(window_s)
    ratio = f"sum(rate({bad_events(slo)}[{window}])) / sum(rate({events(slo)}[{window}]))"
    return {"record": f"{_RATIO}{window}", "expr": ratio, "labels": {"slo": label_value(slo.name)}}


def _alert(slo: SLO, pair: AlertPair) -> dict[str, Any]:
    long, short = duration(pair.long_s), duration(pair.short_s)
    limit = f"{number(pair.burn_rate)} * {number(slo.allowed)}"
    name = label_value(slo.name).replace("{{", '{{"{{"}}')  # annotations and labels are templates
    selector = events(slo).partition("{")[2]
    burns = " and ".join(f"{_RATIO}{window}{{{selector} >= {limit}" for window in (long, short))
    has_minimum = f"sum(increase({events(slo)}[{long}])) >= {slo.minimum_events}"
    return {
        "alert": "StreaminferBudgetBurn",
        "expr": f"{burns} and on() {has_minimum}",
        "labels": {"slo": name, "severity": pair.severity, "window": long},
        "annotations": {
            "summary": f"The error budget of {name} burns at {number(pair.burn_rate)} times its rate",
            "description": (
                f"Over the last {long} and the last {short}, more than {number(pair.burn_rate * slo.allowed)} of the "
                f"events were bad: later than {number(slo.threshold_s)} s, failed or rejected."
            ),
        },
    }
