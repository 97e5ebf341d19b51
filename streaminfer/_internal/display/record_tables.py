"""Tables of attrs records: field names become words, and their endings give the units of the values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from streaminfer._internal.display.html_report import format_size
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.units import format_duration

__all__ = ["record_tables"]

_MAX_ITEMS = 16
_ROUNDED_FROM = 10_000.0
_UNITS: dict[str, Callable[[Any], str]] = {
    "_per_s": "{:,.1f} / s".format,
    "_s": lambda seconds: format_duration(seconds) if seconds else "0 s",
    "bytes": format_size,
    **dict.fromkeys(("share", "rate", "extra", "success"), "{:.1%}".format),
}
"""Number formats, by the ending of the field's name."""


def record_tables(record: Any, kind: str) -> str:
    """Return a table of a record's fields and properties, followed by tables of the records that it holds.

    Args:
        record: an instance of an attrs class.
        kind: text above the table, with the record's name.
    """
    rows, below = [], []
    alike: dict[type, dict[str, Any]] = {}
    values = _values(record)
    caption = ": ".join(filter(None, (kind, values.pop("name", ""))))
    for name, value in values.items():
        if _has_own_html(value):
            # a snapshot's table has a caption
            heading = "" if isinstance(value, Snapshot) else f"<h4>{_label(name)}</h4>"
            below.append(heading + value._repr_html_())
        elif attrs.has(type(value)):
            alike.setdefault(type(value), {})[name] = value
        elif records := _records(value):
            below.append(_table(records, _label(name)))
        elif text := _text(name, value):
            rows.append((_label(name), text))
    for group in alike.values():
        if len(group) > 1:
            below.append(_table(_records(group), ""))
        else:
            below += [record_tables(inner, _label(name)) for name, inner in group.items()]
    return html_table(rows, caption=caption) + "".join(below)


def _has_own_html(value: Any) -> bool:
    """Return whether a value has a picture, or a table of another shape."""
    return getattr(type(value), "_repr_html_", Snapshot._repr_html_) is not Snapshot._repr_html_


def _values(record: Any) -> dict[str, Any]:
    """Return the public fields and properties of a record."""
    names = [field.name for field in attrs.fields(type(record))]
    names += [name for base in type(record).__mro__ for name, member in vars(base).items() if type(member) is property]
    return {name: getattr(record, name) for name in names if not name.startswith("_")}


def _records(values: Any) -> list[dict[str, Any]]:
    """Return the values of the records in a tuple, or by name in a mapping; an empty list for anything else."""
    if isinstance(values, Mapping):
        return [{"name": name, **_values(each)} for name, each in values.items() if attrs.has(type(each))]
    return [_values(each) for each in values if attrs.has(type(each))] if isinstance(values, tuple) else []


def _table(records: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Return a table with a row for each record; a column is left out if all its values are empty, zero or unknown."""
    columns = [name for name in records[0] if any(_has_value(record[name]) for record in records)]
    rows = [[_text(name, record[name]) for name in columns] for record in records]
    return html_table(rows, head=[*map(_label, columns)], caption=caption)


def _has_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(value.values())
    return bool(value) and value == value and not attrs.has(type(value))  # noqa: PLR0124 - NaN is unknown


def _label(name: str) -> str:
    for unit in ("_per_s", "_s", "_bytes"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _text(name: str, value: Any) -> str:
    """Return the value of a field as plain text; empty if it has no value."""
    if value is None:
        return "not known" if name.endswith("_s") else ""
    if isinstance(value, (bool, int, float)):
        return _number(name, value)
    if isinstance(value, Mapping):
        value = [f"{key}: {_text('', item)}" for key, item in value.items()]
    if not isinstance(value, (list, tuple)):
        return str(value)
    more = [f"{len(value) - _MAX_ITEMS:,} more"] if len(value) > _MAX_ITEMS else []
    return ", ".join([*map(str, value[:_MAX_ITEMS]), *more]) or "none"


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return "–"
    for end, text in _UNITS.items():
        if name.endswith(end):
            return text(value)
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < _ROUNDED_FROM else f"{value:,.0f}"
