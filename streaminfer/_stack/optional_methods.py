"""Checks of optional methods of users' objects, because a wrong one would fail or be ignored while a stack runs."""

import inspect
from collections.abc import Iterable
from typing import Any

from streaminfer._internal.signatures import signature_of
from streaminfer._internal.validation import expected
from streaminfer.protocols import Node

__all__ = ["LAYER_METHODS", "check_methods"]

_AWAITED: dict[str, tuple[str, ...]] = {"start": (), "stop": ("drain",)}  # by keyword
_PLAIN: dict[str, tuple[str, ...]] = {
    "bind_clock": ("clock",),
    "statistics": (),
    "validate": ("request",),
    "admission": ("request", "now_ns"),
}
LAYER_METHODS = ("bind_clock", "statistics")
"""Methods of a layer that a stack calls."""
_PART_METHODS = (*_AWAITED, *_PLAIN)


def check_methods(part: Any, names: Iterable[str] = _PART_METHODS) -> None:
    """Check the methods of an object that a stack calls.

    Args:
        part: a backend, a service, a wrapped object or a layer.
        names: names of the methods; the default is those of all but layers.

    Raises:
        TypeError: a method cannot be called in this way, or is async but would not be awaited.
    """
    for name in names:
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
    positional, keywords = _PLAIN.get(name, ()), _AWAITED.get(name, ())
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError:
        arguments = [*positional, *(f"{it}=" for it in keywords)]
        raise TypeError(
            f"{method_name}: expected a method to call as {name}({', '.join(arguments)}), got {name}{signature}"
        ) from None
