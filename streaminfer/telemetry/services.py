"""Names of services, and a walk over all their parts, for exporters and the live page.

The walk follows ``children``, like statistics, audit and lifecycle. A part that is reachable in two ways is found once,
at its first place, so that sums over layers count nothing twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from streaminfer._internal.display.unique_name import unique_name
from streaminfer._internal.validation import check_instance
from streaminfer.protocols import Node, adapt, has_statistics, is_backend, is_layer, is_service, name_of
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["Found", "name_services", "walk"]

_STRUCTURAL_LABELS = frozenset({"layer", "inner"})


class Found(NamedTuple):
    """A part of a service.

    Attributes:
        part: a layer, service or backend.
        node: the part as a `Node`, from `adapt`.
        place: place of the part, such as ``FallbackRouter/full/AdaptiveBatcher``; empty for the outermost part.
        path: labels of routes and replicas in the place, such as ``full``.
        route: the first of these labels; empty if there is none.
    """

    part: Any
    node: Node
    place: str
    path: str
    route: str


def walk(part: Any, visited: set[int], place: str = "", path: str = "", route: str = "") -> Iterator[Found]:
    """Yield a part and all parts inside it, from the outermost.

    Args:
        part: the outermost part.
        visited: ids of the parts found already, which are skipped; the walk adds the ids of new parts.
        place: place of the part.
        path: path of the part.
        route: route of the part.
    """
    if id(part) in visited:
        return
    visited.add(id(part))
    node = adapt(part)
    yield Found(part, node, place, path, route)
    for label, child in node.children.items():
        step = label
        if label in _STRUCTURAL_LABELS:
            # the layers of a stack keep their names when a session is around the stack
            step = "" if adapt(child).stack_state else type(child).__name__
        # the label of a layer is its position in the stack, not a router's name for it
        name = "" if label in _STRUCTURAL_LABELS or node.stack_state else label
        yield from walk(child, visited, _join(place, step), _join(path, name), route or name)


def name_services(parts: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Return services with unique names, and the parts of each.

    The name of a service is that of its outermost telemetry with a name. Parts with the same outermost telemetry are
    one service, such as a stack and the session around it.

    Raises:
        TypeError: there is no part, or a part cannot have statistics, such as a list of parts, a class or a snapshot.
    """
    if not parts:
        raise TypeError("stacks: expected at least one Stack, got none")
    for part in parts:
        check_instance("stacks", part, _is_part, "Stacks, or objects with `statistics()`, one by one: *stacks")
    named: dict[str, tuple[Any, list[Any]]] = {}
    for part in parts:
        telemetries = (it.part for it in walk(part, set()) if isinstance(it.part, Telemetry) and it.part.name)
        outermost = next(telemetries, part)
        name = unique_name(name_of(outermost), [it for it, (owner, _) in named.items() if owner is not outermost])
        named.setdefault(name, (outermost, []))[1].append(part)
    return [(name, parts) for name, (_, parts) in named.items()]


def _is_part(part: object) -> bool:
    if isinstance(part, type):
        return False
    return is_service(part) or is_backend(part) or is_layer(part) or has_statistics(part)


def _join(one: str, other: str) -> str:
    return f"{one}/{other}" if one and other else one or other
