"""PromQL over the events of an objective, and the spelling of durations and names."""

import json
import re
from collections.abc import Sequence

from streaminfer._internal.validation import check_instance, expected
from streaminfer.telemetry.exporters.collection import label_value
from streaminfer.telemetry.exporters.names import METRICS
from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["bad_events", "check_slos", "duration", "events", "good_events", "number", "quoted", "slug"]

_EVENTS = next(metric.prometheus for metric in METRICS["SloStatistics"] if metric.name == "slo.events")
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))  # weeks read worse than days


def check_slos(slos: Sequence[object]) -> None:
    """Check that these are objectives with names of their own.

    Raises:
        TypeError: there is none, or one is no `SLO`.
        ValueError: two of one name, which Prometheus could not tell apart.
    """
    if not slos:
        raise TypeError("slos: expected at least one SLO, got none")
    seen: set[str] = set()
    for slo in slos:
        check_instance("slos", slo, lambda value: isinstance(value, SLO), "SLO objects")
        assert isinstance(slo, SLO)  # noqa: S101 - for the type checker
        if slo.name in seen:
            raise ValueError(expected("slos", "objectives with different names", slo.name))
        seen.add(slo.name)


def events(slo: SLO) -> str:
    """Return the selector of all events."""
    return f"{_EVENTS}{{slo={quoted(slo.name)}}}"


def quoted(name: str) -> str:
    """Return the value that a label has for a name, as PromQL writes it: with JSON's escapes, but for surrogates."""
    return json.dumps(label_value(name), ensure_ascii=False)


def good_events(slo: SLO) -> str:
    """Return the selector of good events."""
    return events(slo).removesuffix("}") + ', result="good"}'


def bad_events(slo: SLO) -> str:
    """Return the selector of bad events."""
    return events(slo).removesuffix("}") + ', result!="good"}'


def duration(seconds: float) -> str:
    """Return a duration as Prometheus spells it, rounded to milliseconds: ``"5m"``, ``"1d12h"``."""
    rest = max(round(seconds * 1000), 1)
    text = ""
    for unit, milliseconds in _UNITS:
        whole, rest = divmod(rest, milliseconds)
        text += f"{whole}{unit}" if whole else ""
    return text


def number(value: float) -> str:
    """Return a number without digits that only rounding made."""
    return f"{value:.12g}"


def slug(name: str) -> str:
    """Return a name as Kubernetes and OpenSLO allow it: lower case letters, digits and dashes, at most 63."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-") or "slo"
