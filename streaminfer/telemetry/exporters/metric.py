"""`Metric`: a family of series, and how its values are read from statistics."""

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
        label: tells several fields, the keys of a mapping, or ``states`` apart; empty: there is one value.
        unit: ``"seconds"``, ``"bytes"``, ``"ratio"``, or empty for a plain number.
        states: values of a text; each is a series that is 1 while the text is this value, else 0.
        event: a change is worth a line in the log.
        normal: value of a gauge at which nothing is wrong.
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
        """Name of the family in Prometheus' formats: no ``_total``."""
        base = "streaminfer_" + self.name.replace(".", "_")
        return f"{base}_{self.unit}" if self.unit else base

    @property
    def prometheus(self) -> str:
        """Name of the series in Prometheus; those of a histogram have ``_bucket``, ``_sum``, ``_count`` behind it."""
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
    """Return a metric whose value never falls.

    Args:
        name: as of `Metric`.
        text: its help.
        fields: separated by spaces; empty: the last part of the name.
        by: the label.
        unit: as of `Metric`.
        event: as of `Metric`.
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
    """Return a metric whose value rises and falls; arguments as of `counter` and `Metric`, states between spaces."""
    return Metric(name, "gauge", text, _fields(name, fields), by, unit, tuple(states.split()), event, normal)


def histogram(name: str, text: str, fields: str, *, by: str = "") -> Metric:
    """Return a distribution of durations; arguments as of `counter`."""
    return Metric(name, "histogram", text, _fields(name, fields), by, "seconds")


def _fields(name: str, fields: str) -> tuple[str, ...]:
    return tuple(fields.split()) or (name.rpartition(".")[2],)
