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

__all__ = ["NOTHING", "UNREAD", "Found", "inner_of", "is_a", "is_ours", "read", "walk"]

NOTHING: Any = type("_Nothing", (), {"__repr__": lambda _: "nothing"})()
"""Result of :func:`read`: there is no such attribute."""
UNREAD: Any = type("_Unread", (), {"__repr__": lambda _: "unread"})()
"""Result of :func:`read`: the attribute exists, but only code outside this package could return its value."""

_PACKAGE = "streaminfer."


class Found(NamedTuple):
    """Object in a stack.

    Attributes:
        thing: the object.
        where: the path to it, in words.
        answers: whether it responds to requests itself: the last layer, a route, a replica.
    """

    thing: Any
    where: str
    answers: bool


def is_a(thing: object, kind: type) -> bool:
    """Return whether an object is of a class, by its type alone, because ``isinstance`` may call the object."""
    return kind in type(thing).__mro__


def is_ours(thing: object) -> bool:
    """Return whether an object, function or method belongs to this package or the interpreter; true for ``None``."""
    if thing is None or is_a(thing, types.BuiltinFunctionType):
        return True
    function: Any = read(thing, "__func__") if is_a(thing, types.MethodType) else thing
    module = read(function, "__module__")
    return is_a(module, str) and module.startswith(_PACKAGE)


def read(thing: object, name: str) -> Any:
    """Return an attribute without running users' code: `NOTHING` if there is none, `UNREAD` if only code returns it."""
    found = inspect.getattr_static(thing, name, NOTHING)
    if is_a(found, property):
        return found.fget(thing) if is_ours(found.fget) else UNREAD
    if is_a(found, types.MemberDescriptorType) or is_a(found, types.GetSetDescriptorType):
        try:
            return found.__get__(thing, type(thing))
        except AttributeError:  # an empty slot
            return NOTHING
    return found


def inner_of(thing: object) -> Any:
    """Return the object that ``thing`` wraps; ``None`` if it wraps none that can be read."""
    inner = read(thing, "inner")
    return None if inner is NOTHING or inner is UNREAD else inner


def walk(stack: Stack) -> Iterator[Found]:
    """Yield every object in a stack once, outermost first.

    These are the layers, the objects that they wrap (``inner``), nested stacks, and the ``children`` of objects of this
    package: routes of routers, replicas, both sides of a `Canary`, and the targets of a `Shadow`'s copies and of a
    `Hedge`'s extra requests.
    """
    seen: set[int] = set()
    waiting: list[Found] = [Found(stack, "stack", False)]
    while waiting:
        found = waiting.pop()
        if id(found.thing) in seen:
            continue
        seen.add(id(found.thing))
        yield found
        waiting += reversed(list(_inside(found)))


def _inside(found: Found) -> Iterator[Found]:
    thing, where = found.thing, found.where
    children = read(thing, "children")
    for label, child in children.items() if is_a(children, dict) else ():
        if is_a(thing, Stack):
            yield Found(child, f"{where} → {_name(child)}", child is thing.layers[-1])
        elif label == "layer":
            yield Found(child, f"{where} → {_name(child)}", False)
        elif label != "inner":
            yield Found(child, f"{where} → {_label(thing, label)}{_inner_name(child)}", True)
    inner = inner_of(thing)
    if inner is not None:
        yield Found(inner, f"{where} → {_name(inner)}", found.answers and not is_a(thing, Stack))


def _label(thing: Any, label: str) -> str:
    if is_a(thing, FallbackRouter):
        return f"route {label!r}"
    return f"replica {label!r}" if is_a(thing, Replicas) else label


def _name(thing: object) -> str:
    if is_a(thing, EdgeCache) and is_ours(thing):  # the exact class of this package does not help a reader
        return "EdgeCache"
    return type(thing).__name__


def _inner_name(service: object) -> str:
    return "" if is_a(service, Stack) else f" → {_name(service)}"
