"""`slo_documents`: objectives as OpenSLO, for Sloth and other tools, or as Pyrra's objects.

References: https://github.com/OpenSLO/OpenSLO#slo (openslo/v1), https://sloth.dev/usage/openslo (openslo/v1alpha),
https://github.com/pyrra-dev/pyrra (pyrra.dev/v1alpha1)
"""

from typing import Any, Literal, get_args

from streaminfer._internal.validation import check_choice, expected
from streaminfer.telemetry.exporters.rules.queries import (
    bad_events,
    check_slos,
    duration,
    events,
    good_events,
    number,
    slug,
)
from streaminfer.telemetry.exporters.rules.yaml_text import to_yaml
from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["slo_documents"]

Version = Literal["openslo/v1", "openslo/v1alpha", "pyrra.dev/v1alpha1"]

_MINUTE_S, _DAY_S = 60.0, 86_400.0


def slo_documents(*slos: SLO, version: Version = "openslo/v1") -> str:
    """Return a YAML document for each objective.

    Args:
        slos: objectives; their names must differ in letters and digits, because Kubernetes names keep only these.
        version: ``"openslo/v1"``; ``"openslo/v1alpha"``, for Sloth; or ``"pyrra.dev/v1alpha1"``, for Pyrra. The window
            is rounded to whole minutes for ``"openslo/v1"`` and to whole days for ``"openslo/v1alpha"``, at least one.

    Raises:
        TypeError, ValueError: there is no objective, an argument is not an `SLO`, two have the same name, or the
            version is unknown.
    """
    check_slos(slos)
    slugs = [slug(slo.name) for slo in slos]
    for position, slo in enumerate(slos):
        if slugs[position] in slugs[:position]:
            raise ValueError(expected("slos", "names that differ in letters and digits", slo.name))
    check_choice("version", version, get_args(Version))
    write = {"openslo/v1": _openslo, "openslo/v1alpha": _openslo_alpha, "pyrra.dev/v1alpha1": _pyrra}[version]
    return "---\n".join(
        to_yaml({"apiVersion": version, **write(slo, f"Responses within {number(slo.threshold_s)} s")}) for slo in slos
    )


def _openslo(slo: SLO, text: str) -> dict[str, Any]:
    good, total = (
        {"metricSource": {"type": "Prometheus", "spec": {"query": query}}} for query in (good_events(slo), events(slo))
    )
    indicator = {"ratioMetric": {"counter": True, "good": good, "total": total}}
    return _slo(
        slo,
        text,
        indicator={"metadata": {"name": f"{slug(slo.name)[:54]}-latency"}, "spec": indicator},
        timeWindow=[{"duration": _whole_units(slo.period_s), "isRolling": True}],
        objectives=[{"displayName": text, "target": slo.objective}],
    )


def _openslo_alpha(slo: SLO, text: str) -> dict[str, Any]:
    good, total = (
        {"source": "prometheus", "queryType": "promql", "query": f"sum(rate({query}[{{{{.window}}}}]))"}
        for query in (good_events(slo), events(slo))
    )
    ratio = {"incremental": True, "good": good, "total": total}
    days = max(round(slo.period_s / _DAY_S), 1)
    return _slo(
        slo,
        text,
        objectives=[{"displayName": text, "target": slo.objective, "ratioMetrics": ratio}],
        timeWindows=[{"count": days, "unit": "Day", "isRolling": True}],
    )


def _slo(slo: SLO, text: str, **fields: Any) -> dict[str, Any]:
    """Return the common part of both OpenSLO versions, with further fields of its ``spec``."""
    name = slug(slo.name)
    return {
        "kind": "SLO",
        "metadata": {"name": name, "displayName": slo.name},
        "spec": {"description": text, "service": name, "budgetingMethod": "Occurrences", **fields},
    }


def _pyrra(slo: SLO, text: str) -> dict[str, Any]:
    return {
        "kind": "ServiceLevelObjective",
        "metadata": {"name": slug(slo.name), "labels": {"prometheus": "k8s", "role": "alert-rules"}},
        "spec": {
            "description": text,
            "target": number(slo.objective * 100),
            "window": duration(slo.period_s),
            "indicator": {"ratio": {"errors": {"metric": bad_events(slo)}, "total": {"metric": events(slo)}}},
        },
    }


def _whole_units(seconds: float) -> str:
    """Return a duration in OpenSLO's form: a whole number of one unit, at least a minute."""
    minutes = max(round(seconds / _MINUTE_S), 1)
    size, unit = next((size, unit) for size, unit in ((1440, "d"), (60, "h"), (1, "m")) if minutes % size == 0)
    return f"{minutes // size}{unit}"
