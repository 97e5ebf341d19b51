"""`Snapshot`: the base of all statistics classes, with conversions to JSON values and to a table."""

import math
import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import attrs

__all__ = ["Snapshot", "ToDict"]


@runtime_checkable
class ToDict(Protocol):
    """Object that converts itself to JSON values, such as the statistics of a user's layer."""

    def to_dict(self) -> Any:
        """Return dictionaries, lists, numbers and strings."""


class Snapshot:
    """Frozen attrs class with the state at one moment."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as dictionaries, lists, numbers and strings, for strict JSON.

        Keys become strings; arrays and tuples become lists; numbers that are not finite become ``None``. A histogram
        becomes its count, moments and percentiles.
        """
        fields = attrs.fields(type(self))  # type: ignore[arg-type]  # every subclass is an attrs class
        return {field.name: _as_plain(getattr(self, field.name)) for field in fields}

    def _repr_html_(self) -> str:
        from streaminfer._internal.display.record_tables import record_tables  # noqa: PLC0415 - a notebook's need

        words = re.findall("[A-Z][a-z]*", type(self).__name__.removesuffix("Statistics"))
        return record_tables(self, " ".join(words).lower())


_CONTAINERS = (dict, list, tuple, set, frozenset)  # skipped, because each look-up of a method costs microseconds


def _as_plain(value: Any) -> Any:  # noqa: PLR0911 - one for each kind
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value) not in _CONTAINERS and isinstance(value, ToDict):
        return _as_plain(value.to_dict())
    if attrs.has(type(value)):
        return {field.name: _as_plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _as_plain(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _as_plain(value.tolist())
    return str(value)
