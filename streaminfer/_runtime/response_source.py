"""Sources of responses with more than the route: the part inside it, or why the best route gave no response.

The text alone does not show where the name of the route ends, because names of models and replicas may contain slashes
and parentheses, as in ``org/model`` and ``http://host:8000``. The source therefore stores the route.
"""

import functools

__all__ = ["RoutedSource", "fallback_source", "nested_source"]

_CACHE_SIZE = 1024


class RoutedSource(str):
    """A ``Response.source`` of several parts.

    Attributes:
        route: the name of the route, the outermost name in the text.
    """

    __slots__ = ("route",)

    route: str


@functools.lru_cache(maxsize=_CACHE_SIZE)
def nested_source(route: str, inner: str) -> str:
    """Return the source of a response from a part of a route; with an empty ``inner``, the route's name."""
    return _routed(route, f"{route}/{inner}") if inner else route


@functools.lru_cache(maxsize=_CACHE_SIZE)
def fallback_source(route: str, better: str, reason: str) -> str:
    """Return the source of a response from a fallback route, with the better route and why that gave no response."""
    return _routed(route, f"{route} ({better}: {reason})")


def _routed(route: str, text: str) -> str:
    source = RoutedSource(text)
    source.route = route
    return source
