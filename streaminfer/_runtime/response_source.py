"""Sources of responses that say more than the route: what is inside it, or why the best route gave no response.

The text alone does not tell where the route ends: names of models and replicas may have slashes and parentheses, as
``org/model`` and ``http://host:8000`` do. So the source knows it.
"""

import functools

__all__ = ["RoutedSource", "fallback_source", "nested_source"]

_MOST = 1024


class RoutedSource(str):
    """A ``Response.source`` of several parts.

    Attributes:
        route: the outermost name in it.
    """

    __slots__ = ("route",)

    route: str


@functools.lru_cache(maxsize=_MOST)
def nested_source(route: str, inner: str) -> str:
    """Return the source of a response that a part of a route gave; empty ``inner``: that is the route's name."""
    return _routed(route, f"{route}/{inner}") if inner else route


@functools.lru_cache(maxsize=_MOST)
def fallback_source(route: str, better: str, reason: str) -> str:
    """Return the source of a response for which another route was better, and why that one gave none."""
    return _routed(route, f"{route} ({better}: {reason})")


def _routed(route: str, text: str) -> str:
    source = RoutedSource(text)
    source.route = route
    return source
