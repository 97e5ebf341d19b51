"""Helpers for the objects that the layers of this package wrap, and the rule for requests that may be sent twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from streaminfer._internal.validation import check_instance, expected
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.protocols import adapt
from streaminfer.request import Batch, Request

__all__ = [
    "PLAIN",
    "exception_classes",
    "may_repeat",
    "reject_awaitable",
    "reject_copy",
    "repeats",
    "wrap_by_kind",
]

_Wrap = Callable[[Any, Any], Any]

PLAIN = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, np.ndarray})
"""Types of results that are certainly not awaitable; the look-up of ``__await__`` costs a tenth of a microsecond."""


def exception_classes(
    argument: str, selection: Any
) -> tuple[tuple[type[BaseException], ...], Callable[[BaseException], Any] | None]:
    """Return classes of exceptions and a predicate; one of them is empty.

    Args:
        argument: name of the argument.
        selection: a class, an iterable of classes, or a function of an exception.

    Raises:
        TypeError: ``selection`` is none of these.
    """
    expectation = "classes of exceptions, or a function of an exception"
    if isinstance(selection, type):
        selection = (selection,)
    elif callable(selection):
        return (), selection
    check_instance(argument, selection, Iterable, expectation)
    classes = tuple(selection)
    for each in classes:
        check_instance(argument, each, lambda it: isinstance(it, type) and issubclass(it, BaseException), expectation)
    return classes, None


def reject_awaitable(
    function: Any,
    result: Any,
    argument: str = "inner",
    expectation: str = "an async function where it returns an awaitable",
) -> None:
    """Raise ``TypeError`` if a function that looks synchronous has returned an awaitable.

    Its call has no outcome yet, so a guard would count every outcome as a success.

    Args:
        function: the called function.
        result: its result.
        argument: name of the argument with the function.
        expectation: what was expected instead.
    """
    if type(result) in PLAIN or not hasattr(type(result), "__await__"):
        return
    if inspect.iscoroutine(result):
        result.close()
    raise TypeError(expected(argument, expectation, function))


def reject_copy(guard: Any) -> Any:
    """Raise an error, because a copy would share only a part of the state.

    This is the ``__reduce__`` of the guards, which ``copy``, ``deepcopy`` and ``pickle`` call.
    """
    raise TypeError(f"{guard!r} holds the state of calls in flight and cannot be copied; make another one")


def wrap_by_kind(layer: Any, inner: Any, service: _Wrap, backend: _Wrap, async_function: _Wrap, function: _Wrap) -> Any:
    """Wrap an object with a layer, by the function for the kind of the object.

    Raises:
        TypeError: ``inner`` is neither a service, a backend nor a function.
    """
    kinds = {"service": service, "backend": backend, "async function": async_function, "function": function}
    return kinds[kind_of(inner)](layer, inner)


def repeats(inner: Any, idempotent: bool | None) -> bool | None:
    """Return whether requests may be sent more than once.

    Args:
        inner: the wrapped object, which may have ``idempotent``, true or false.
        idempotent: the layer's setting; ``None``: as ``inner`` declares.

    Returns:
        True: all requests; False: no request; ``None``: requests that belong to no stream.
    """
    return idempotent if idempotent is not None else adapt(inner).capabilities().idempotent


def may_repeat(sent: Request | Batch, rule: bool | None) -> bool:
    """Return whether this request, or batch, may be sent more than once.

    If nothing was declared, a request of a live stream may not: the model may keep the stream's state.
    """
    if rule is not None:
        return rule
    rows: Iterable[Any] = sent.rows if isinstance(sent, Batch) else (sent,)
    return all(row is None or row.stream_id is None for row in rows)
