"""Routes as labels, and the label of what has none of its own."""

import functools
import re

__all__ = ["OTHER", "route_of"]

OTHER = "other"
"""Value of every label of the child that collects the sets beyond the bound."""

_REASON = re.compile(r" \((?:[^()]|\([^()]*\))*: \w*\)$")
"""What a `FallbackRouter` adds to the name of a route: the best route, whose name may have parentheses, and a word."""


@functools.lru_cache(maxsize=1024)
def route_of(source: str) -> str:
    """Return the outermost route of a response's source, without what is inside it and why it was chosen."""
    return _REASON.sub("", source).partition("/")[0]
