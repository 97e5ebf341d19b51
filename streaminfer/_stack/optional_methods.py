"""Checks of optional methods of users' objects, because a wrong one would fail or be ignored while a stack runs."""

import inspect
from typing import Any

from streaminfer._internal.signatures import signature_of
from streaminfer._internal.validation import expected
from streaminfer.protocols import Node

__all__ = ["check_layer_methods", "check_part_methods"]

_AWAITED: dict[str, tuple[str, ...]] = {"start": (), "stop": ("drain",)}  # by keyword
_PLAIN: dict[str, tuple[str, ...]] = {
    "bind_clock": ("clock",),
    "statistics": (),
    "validate": ("request",),
    "admission": ("request", "now_ns"),
}
_LAYER_METHODS = ("bind_clock", "statistics")


def check_layer_methods(layer: Any) -> None:
    """Check the methods of a layer that a stack calls.

    Raises:
        TypeError: a method cannot be called in this way, or is async but would not be awaited.
    """
    for name in _LAYER_METHODS:
        _check(layer, name)


def check_part_methods(part: Any) -> None:
    """Check the methods of a backend, a service or a wrapped object that a stack calls.

    Raises:
        TypeError: as :func:`check_layer_methods`.
    """
    for name in (*_AWAITED, *_PLAIN):
        _check(part, name)


def _check(part: Any, name: str) -> None:
    method = None if isinstance(part, Node) else getattr(part, name, None)
    if not callable(method):
        return
    method_name = f"{type(part).__name__}.{name}"
    if name in _PLAIN and inspect.iscoroutinefunction(method):
        raise TypeError(expected(method_name, "a plain function, because its call is not awaited", method))
    try:
        signature = signature_of(method)
    except (TypeError, ValueError):  # of compiled code
        return
    try:
        if name in _AWAITED:
            signature.bind(**dict.fromkeys(_AWAITED[name]))
        else:
            signature.bind(*_PLAIN[name])
    except TypeError:
        arguments = [f"{it}=" for it in _AWAITED[name]] if name in _AWAITED else _PLAIN[name]
        raise TypeError(
            f"{method_name}: expected a method to call as {name}({', '.join(arguments)}), got {name}{signature}"
        ) from None
