"""`Metric`: a family of series, and the fields of the statistics that it reads."""

from typing import Literal

import attrs

__all__ = ["Metric", "counter", "gauge", "histogram"]

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


def counter(name: str, text: str, fields: str = "", *, by: str = "", unit: Unit = "", event: bool = False) -> Metric:
    """Return a counter, a metric with a value that never falls.

    Args:
        name: as for `Metric`.
        text: help text.
        fields: fields separated by spaces; empty: the last part of the name.
        by: label, as for `Metric`.
        unit: as for `Metric`.
        event: as for `Metric`.
    """
    return Metric(name, "counter", text, _fields(name, fields), by, unit, event=event)


def gauge(
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
    """Return a gauge; arguments as for `counter` and `Metric`, with the states separated by spaces."""
    return Metric(name, "gauge", text, _fields(name, fields), by, unit, tuple(states.split()), event, normal)


def histogram(name: str, text: str, fields: str, *, by: str = "") -> Metric:
    """Return a histogram of durations; arguments as for `counter`."""
    return Metric(name, "histogram", text, _fields(name, fields), by, "seconds")


def _fields(name: str, fields: str) -> tuple[str, ...]:
    return tuple(fields.split()) or (name.rpartition(".")[2],)
