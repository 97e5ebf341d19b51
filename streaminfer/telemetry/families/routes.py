"""Routes as labels."""

__all__ = ["route_of"]


def route_of(source: str) -> str:
    """Return the outermost route of a response's source, without what is inside it and why it was chosen."""
    return source.partition(" (")[0].partition("/")[0]
