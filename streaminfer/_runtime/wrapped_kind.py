"""Kinds of objects that layers can wrap."""

import functools
import inspect
from typing import Any

from streaminfer._internal.validation import expected
from streaminfer.protocols import is_backend, is_service

__all__ = ["check_no_generator", "kind_of"]


def kind_of(inner: Any, argument: str = "inner") -> str:
    """Return ``"service"``, ``"backend"``, ``"async function"`` or ``"function"``.

    Args:
        inner: the wrapped object.
        argument: its name in errors.

    Raises:
        TypeError: ``inner`` is none of these, or a generator function, whose call ends before its work begins.
    """
    if is_service(inner):
        return "service"
    if is_backend(inner):
        return "backend"
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(expected(argument, "a service, a backend or a function", inner))
    called = check_no_generator(argument, inner)
    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)
    return "async function" if is_async else "function"


def check_no_generator(argument: str, function: Any) -> Any:
    """Return the function that a call of a function or object runs.

    Raises:
        TypeError: it is a generator function, whose call ends before its work begins.
    """
    called = (
        function if inspect.isroutine(function) or isinstance(function, functools.partial) else type(function).__call__
    )
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(expected(argument, "a function that ends when its work does, not a generator", function))
    return called
