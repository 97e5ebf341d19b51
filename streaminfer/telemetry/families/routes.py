"""Routes as labels, and the label of what has none of its own."""

from streaminfer._runtime.response_source import RoutedSource

__all__ = ["OTHER", "route_of"]

OTHER = "other"
"""Value of every label of the child that collects the sets beyond the bound."""


def route_of(source: str) -> str:
    """Return the outermost route of a response's source, without what is inside it and why it was chosen."""
    return source.route if isinstance(source, RoutedSource) else source
