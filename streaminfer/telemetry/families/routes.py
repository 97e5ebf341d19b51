"""Routes as label values, and the label value of sets beyond a bound."""

from streaminfer._runtime.response_source import RoutedSource

__all__ = ["OTHER", "route_of"]

OTHER = "other"
"""Value of every label of the child that sets beyond the bound share."""


def route_of(source: str) -> str:
    """Return the outermost route of a response's source, without inner sources and the reason for the route."""
    return source.route if isinstance(source, RoutedSource) else source
