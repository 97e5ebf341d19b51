"""`Metric`: a family of series, and the fields of the statistics that it reads."""

import functools
from typing import Literal

import attrs

__all__ = ["Metric", "counter", "gauge", "histogram", "state"]

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes", "ratio"]


@attrs.frozen(eq=False)
class Metric:
    """One family of series.

    Attributes:
        name: dotted, without the prefix ``streaminfer``.
        kind: ``"counter"``, ``"gauge"`` or ``"histogram"``.
        help: one sentence.
        fields: attributes of the statistics; a mapping gives a series for each of its keys.
        label: label that tells several fields, the keys of a mapping, or ``states`` apart; empty for a single value.
        unit: ``"seconds"``, ``"bytes"``, ``"ratio"``, or empty for a plain number.
        states: possible values of a string field; the series of each is 1 while the field has this value, else 0.
        event: whether a change is logged as an event.
        normal: normal value of a gauge, at which nothing is wrong.
    """

    name: str
    kind: Kind
    help: str
    fields: tuple[str, ...]
    label: str = ""
    unit: Unit = ""
    states: tuple[str, ...] = ()
    event: bool = False
    normal: float = 0.0

    @property
    def family(self) -> str:
        """Name of the family in Prometheus' formats, without ``_total``."""
        base = "streaminfer_" + self.name.replace(".", "_")
        return f"{base}_{self.unit}" if self.unit else base

    @property
    def prometheus(self) -> str:
        """Name of the series in Prometheus; series of a histogram add ``_bucket``, ``_sum`` or ``_count``."""
        return f"{self.family}_total" if self.kind == "counter" else self.family

    @property
    def opentelemetry(self) -> str:
        """Name in OpenTelemetry."""
        return f"streaminfer.{self.name}"

    @property
    def ucum(self) -> str:
        """Unit in OpenTelemetry, in the Unified Code for Units of Measure."""
        return {"seconds": "s", "bytes": "By"}.get(self.unit, "1")


def _metric(
    kind: Kind,
    name: str,
    text: str,
    fields: str = "",
    *,
    by: str = "",
    unit: Unit = "",
    states: str = "",
    event: bool = False,
    normal: float = 0.0,
) -> Metric:
    """Return a metric.

    Args:
        kind: as for `Metric`.
        name: as for `Metric`.
        text: help text; without a full stop, "by" and the label are added.
        fields: fields separated by spaces; empty: the last part of the name. The unit of ``…_s`` is the second.
        by: label, as for `Metric`.
        unit: as for `Metric`.
        states: as for `Metric`, separated by spaces.
        event: as for `Metric`.
        normal: as for `Metric`.
    """
    read = tuple(fields.split()) or (name.rpartition(".")[2],)
    if read[0].endswith("_s") and not read[0].endswith("_per_s"):
        unit = "seconds"
    help_text = text if text.endswith(".") else f"{text}, by {by}."
    return Metric(name, kind, help_text, read, by, unit, tuple(states.split()), event, normal)


counter = functools.partial(_metric, "counter")
"""Return a metric with a value that never falls; arguments as for `_metric`."""

gauge = functools.partial(_metric, "gauge")
"""Return a metric with a value that rises and falls; arguments as for `_metric`."""

histogram = functools.partial(_metric, "histogram", unit="seconds")
"""Return a histogram of durations; arguments as for `_metric`."""


def state(name: str, states: str, field: str = "") -> Metric:
    """Return a gauge for each state of an object, such as a breaker; ``name`` is the object and the kind of state."""
    owner, _, label = name.rpartition(".")
    return gauge(name, f"Whether the {owner} is in this {label}.", field, by=label, states=states, event=True)
