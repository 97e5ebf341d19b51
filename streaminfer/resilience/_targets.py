"""What is it that a layer is put in front of, and may a request be sent twice?"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from streaminfer._internal.validation import expected
from streaminfer.protocols import adapt, is_backend, is_service
from streaminfer.request import Batch, Request

__all__ = ["kind_of", "may_repeat", "refuse_awaitable", "refuse_copy", "repeats"]


def kind_of(inner: Any) -> str:
    """``"service"``, ``"backend"``, ``"async function"`` or ``"function"``.

    Raises:
        TypeError: none of these, or a generator function, whose call ends before its work begins.
    """
    if is_service(inner):
        return "service"
    if is_backend(inner):
        return "backend"
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(expected("inner", "a service, a backend or a function", inner))
    called = inner if inspect.isroutine(inner) or isinstance(inner, functools.partial) else type(inner).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(expected("inner", "a function that ends when its work does, not a generator", inner))
    return "async function" if inspect.iscoroutinefunction(called) else "function"


def refuse_awaitable(function: Any, result: Any) -> None:
    """Raise the error of a function that looks synchronous and returns something to be awaited.

    Its call has no outcome yet, so a guard would count whatever comes of it as a success.
    """
    if inspect.iscoroutine(result):
        result.close()
    raise TypeError(expected("inner", "an async function where it returns an awaitable", function))


def refuse_copy(guard: Any) -> Any:
    """Raise the error of a copy: it would share some of the state, and not the rest.

    It is the ``__reduce__`` of the guards, which ``copy``, ``deepcopy`` and ``pickle`` call.
    """
    raise TypeError(f"{guard!r} holds the state of calls in flight and cannot be copied; make another one")


def repeats(inner: Any, idempotent: bool | None) -> bool | None:
    """Whether requests may be sent more than once.

    Args:
        inner: what answers them; it may offer ``idempotent``, true or false.
        idempotent: what the layer was told; ``None``: as ``inner`` says.

    Returns:
        True: all; False: none; ``None``: those that belong to no stream.
    """
    return idempotent if idempotent is not None else adapt(inner).capabilities().idempotent


def may_repeat(sent: Request | Batch, rule: bool | None) -> bool:
    """Whether this request, or batch, may be sent more than once.

    Where nothing was declared, a request of a live stream may not: the model may keep the stream's state.
    """
    if rule is not None:
        return rule
    rows: Iterable[Any] = sent.rows if isinstance(sent, Batch) else (sent,)
    return all(row is None or row.stream_id is None for row in rows)
