"""Kinds of objects that layers can wrap."""

import functools
import inspect
from typing import Any

from streaminfer._internal.validation import check_instance, expected
from streaminfer.protocols import is_backend, is_service

__all__ = ["check_no_generator", "is_async", "kind_of"]


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
    expectation = "a service, a backend or a function"
    check_instance(argument, inner, lambda it: callable(it) and not isinstance(it, type), expectation)
    check_no_generator(argument, inner)
    return "async function" if is_async(inner) else "function"


def is_async(function: Any) -> bool:
    """Return whether a call of a function or object makes a coroutine."""
    called = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(type(called).__call__)


def check_no_generator(argument: str, function: Any) -> None:
    """Check that a call of a function or object runs no generator function, whose call ends before its work begins.

    Raises:
        TypeError: it runs one.
    """
    called = (
        function if inspect.isroutine(function) or isinstance(function, functools.partial) else type(function).__call__
    )
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(expected(argument, "a function that ends when its work does, not a generator", function))
