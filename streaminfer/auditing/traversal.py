"""Traversal of a `Stack` without running users' code.

Attributes are read statically: values of instances and classes, slots, and properties of this package. A property or a
``__getattr__`` of another class is code and is not run; its value stays `UNREAD`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.routing.fallback.fallback_router import FallbackRouter
from streaminfer.routing.replicas.replica_set import Replicas
from streaminfer.stack import Stack

__all__ = ["NOTHING", "UNREAD", "StackPart", "inner_of", "is_a", "is_own_code", "read", "walk"]

NOTHING: Any = type("_Nothing", (), {"__repr__": lambda _: "nothing"})()
"""Result of :func:`read`: there is no such attribute."""
UNREAD: Any = type("_Unread", (), {"__repr__": lambda _: "unread"})()
"""Result of :func:`read`: the attribute exists, but only code outside this package could return its value."""

_PACKAGE = "streaminfer."


class StackPart(NamedTuple):
    """Object in a stack.

    Attributes:
        obj: the object.
        where: the path to it, in words.
        answers: whether it responds to requests itself: the last layer, a route, a replica.
    """

    obj: Any
    where: str
    answers: bool


def is_a(obj: object, kind: type) -> bool:
    """Return whether an object is of a class, by its type alone, because ``isinstance`` may call the object."""
    return kind in type(obj).__mro__


def is_own_code(obj: object) -> bool:
    """Return whether an object, function or method belongs to this package or the interpreter; true for ``None``."""
    if obj is None or is_a(obj, types.BuiltinFunctionType):
        return True
    function: Any = read(obj, "__func__") if is_a(obj, types.MethodType) else obj
    module = read(function, "__module__")
    return is_a(module, str) and module.startswith(_PACKAGE)


def read(obj: object, name: str) -> Any:
    """Return an attribute without running users' code: `NOTHING` if there is none, `UNREAD` if only code returns it."""
    value = inspect.getattr_static(obj, name, NOTHING)
    if is_a(value, property):
        return value.fget(obj) if is_own_code(value.fget) else UNREAD
    if is_a(value, types.MemberDescriptorType) or is_a(value, types.GetSetDescriptorType):
        try:
            return value.__get__(obj, type(obj))
        except AttributeError:  # an empty slot
            return NOTHING
    return value


def inner_of(obj: object) -> Any:
    """Return the object that ``obj`` wraps; ``None`` if it wraps none that can be read."""
    inner = read(obj, "inner")
    return None if inner is NOTHING or inner is UNREAD else inner


def walk(stack: Stack) -> Iterator[StackPart]:
    """Yield every object in a stack once, outermost first.

    These are the layers, the objects that they wrap (``inner``), nested stacks, and the ``children`` of objects of this
    package: routes of routers, replicas, both sides of a `Canary`, and the targets of a `Shadow`'s copies and of a
    `Hedge`'s extra requests.
    """
    seen: set[int] = set()
    waiting: list[StackPart] = [StackPart(stack, "stack", False)]
    while waiting:
        part = waiting.pop()
        if id(part.obj) in seen:
            continue
        seen.add(id(part.obj))
        yield part
        waiting += reversed(list(_inside(part)))


def _inside(part: StackPart) -> Iterator[StackPart]:
    obj, where = part.obj, part.where
    children = read(obj, "children")
    for label, child in children.items() if is_a(children, dict) else ():
        if is_a(obj, Stack):
            yield StackPart(child, f"{where} → {_name(child)}", child is obj.layers[-1])
        elif label == "layer":
            yield StackPart(child, f"{where} → {_name(child)}", False)
        elif label != "inner":
            yield StackPart(child, f"{where} → {_label(obj, label)}{_inner_name(child)}", True)
    inner = inner_of(obj)
    if inner is not None:
        yield StackPart(inner, f"{where} → {_name(inner)}", part.answers and not is_a(obj, Stack))


def _label(obj: Any, label: str) -> str:
    if is_a(obj, FallbackRouter):
        return f"route {label!r}"
    return f"replica {label!r}" if is_a(obj, Replicas) else label


def _name(obj: object) -> str:
    if is_a(obj, EdgeCache) and is_own_code(obj):  # the exact class of this package does not help a reader
        return "EdgeCache"
    return type(obj).__name__


def _inner_name(service: object) -> str:
    return "" if is_a(service, Stack) else f" → {_name(service)}"
