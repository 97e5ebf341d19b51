"""What is it that a layer is put in front of, and may a request be sent twice?"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from streaminfer._validation import expected
from streaminfer.protocols import find_inward, is_backend, is_service
from streaminfer.request import Batch, Request

__all__ = ["kind_of", "may_repeat", "name_of", "repeats"]


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


def name_of(inner: Any) -> str:
    """What errors and answers call it."""
    return str(getattr(inner, "name", None) or type(inner).__name__)


def repeats(inner: Any, idempotent: bool | None) -> bool | None:
    """Whether requests may be sent more than once.

    Args:
        inner: what answers them; it may offer ``idempotent``, true or false.
        idempotent: what the layer was told; ``None``: as ``inner`` says.

    Returns:
        True: all; False: none; ``None``: those that belong to no stream.
    """
    return idempotent if idempotent is not None else find_inward(inner, "idempotent", None)


def may_repeat(sent: Request | Batch, rule: bool | None) -> bool:
    """Whether this request, or batch, may be sent more than once.

    Where nothing was declared, a request of a live stream may not: the model may keep the stream's state.
    """
    if rule is not None:
        return rule
    rows: Iterable[Any] = sent.rows if isinstance(sent, Batch) else (sent,)
    return all(getattr(row, "stream_id", None) is None for row in rows)
