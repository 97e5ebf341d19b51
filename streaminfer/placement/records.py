"""Conversion of attrs records to JSON and back; an error has the path to the mistake."""

import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
import numpy as np

from streaminfer._internal.validation import expected, make_from_table
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement.distribution import Distribution

__all__ = ["read_record", "write_record"]

R = TypeVar("R")


def write_record(value: Any) -> Any:  # noqa: PLR0911 - one for each kind
    """Return a record in a form that `json.dumps` accepts, without the fields that have their default."""
    if isinstance(value, Distribution):
        return value.to_json()
    if isinstance(value, ServiceTime):
        if value.sizes == (0,):
            return {"setup_s": value.times_s[0], "per_item_s": value.per_item_s}
        return value.to_dict()
    if attrs.has(type(value)):
        fields = [(field, getattr(value, field.name)) for field in attrs.fields(type(value))]
        return {field.name: write_record(one) for field, one in fields if one != field.default}
    if isinstance(value, Mapping):
        return {key: write_record(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [write_record(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def read_record(kind: type[R], stored: Any, path: str) -> R:
    """Make a record from the result of `write_record`.

    Args:
        kind: an attrs class with keyword arguments.
        stored: result of `json.loads`.
        path: path to the record, for messages; empty at the top.

    Raises:
        TypeError, ValueError: ``stored`` does not fit the class.
    """
    if not isinstance(stored, Mapping):
        raise TypeError(expected(path or "problem", "an object", stored))
    hints = _hints(cast("Any", kind))
    values = {
        key: _read(hints[key], value, f"{path}.{key}" if path else key) if key in hints else value
        for key, value in stored.items()
    }
    return make_from_table(kind, values, path, "problem")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return {field.name: get_type_hints(kind)[field.name] for field in attrs.fields(cast("Any", kind))}


def _read(hint: Any, stored: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        is_list, is_table = isinstance(stored, list), isinstance(stored, Mapping)
        branches = (it for it in arguments if (is_list and get_origin(it) is tuple) or (is_table and attrs.has(it)))
        branch = next(branches, None)
        return stored if branch is None else _read(branch, stored, path)
    if origin in {tuple, Sequence}:
        if not isinstance(stored, list):
            if arguments[0] is float:
                return stored  # one number for all hours
            raise TypeError(expected(path, "a list", stored))
        return tuple(_read(arguments[0], one, f"{path}[{at}]") for at, one in enumerate(stored))
    if origin is Mapping:
        if not isinstance(stored, Mapping):
            raise TypeError(expected(path, "an object", stored))
        return {key: _read(arguments[1], one, f"{path}[{key!r}]") for key, one in stored.items()}
    if hint is Distribution or hint is ServiceTime:
        try:
            return Distribution.from_json(stored) if hint is Distribution else _service_time(stored)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error
    return read_record(hint, stored, path) if attrs.has(hint) else stored


def _service_time(stored: Any) -> ServiceTime:
    """Read a service time from set-up and time per item, from times by size, or from `ServiceTime.to_dict`."""
    if not isinstance(stored, Mapping):
        raise TypeError(expected("service time", "setup_s and per_item_s, or seconds by batch size", stored))
    if set(stored) == {"setup_s", "per_item_s"}:
        return ServiceTime.affine(stored["setup_s"], stored["per_item_s"])
    if "format" in stored:
        return ServiceTime.from_dict(stored)
    if not all(key.isdigit() for key in stored):
        raise ValueError(expected("service time", "setup_s and per_item_s, or seconds by batch size", stored))
    return ServiceTime.table({int(size): seconds for size, seconds in stored.items()})
