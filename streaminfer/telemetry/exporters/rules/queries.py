"""PromQL selectors for the events of an objective, and the format of durations and names."""

import json
import re
from collections.abc import Sequence
from typing import Any

from streaminfer._internal.validation import check_instance, expected
from streaminfer.telemetry.exporters.collection import label_value
from streaminfer.telemetry.exporters.names import METRICS
from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["bad_events", "check_slos", "duration", "events", "good_events", "number", "quoted", "slug"]

_EVENTS = next(metric.prometheus for metric in METRICS["SloStatistics"] if metric.name == "slo.events")
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))  # no weeks: days are clearer


def check_slos(slos: Sequence[Any]) -> None:
    """Check that there are objectives, all with different names.

    Raises:
        TypeError: there is no objective, or one is not an `SLO`.
        ValueError: two objectives have the same name, so Prometheus could not tell them apart.
    """
    if not slos:
        raise TypeError("slos: expected at least one SLO, got none")
    for position, slo in enumerate(slos):
        check_instance("slos", slo, SLO, "SLO objects")
        if slo.name in {other.name for other in slos[:position]}:
            raise ValueError(expected("slos", "objectives with different names", slo.name))


def events(slo: SLO) -> str:
    """Return the selector of all events."""
    return f"{_EVENTS}{{slo={quoted(slo.name)}}}"


def quoted(name: str) -> str:
    """Return the label value of a name as a PromQL string: with JSON's escapes, but without those for non-ASCII."""
    return json.dumps(label_value(name), ensure_ascii=False)


def good_events(slo: SLO) -> str:
    """Return the selector of good events."""
    return events(slo).removesuffix("}") + ', result="good"}'


def bad_events(slo: SLO) -> str:
    """Return the selector of bad events."""
    return events(slo).removesuffix("}") + ', result!="good"}'


def duration(seconds: float) -> str:
    """Return a duration in Prometheus' notation, rounded to milliseconds: ``"5m"``, ``"1d12h"``."""
    remaining_ms = max(round(seconds * 1000), 1)
    text = ""
    for unit, milliseconds in _UNITS:
        count, remaining_ms = divmod(remaining_ms, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text


def number(value: float) -> str:
    """Return a number as text, without digits from floating-point rounding."""
    return f"{value:.12g}"


def slug(name: str) -> str:
    """Return a name that Kubernetes and OpenSLO allow: lower-case letters, digits and dashes, at most 63 characters."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-") or "slo"
