"""Names for what has the same name."""

import itertools
from collections.abc import Container

__all__ = ["unique_name"]


def unique_name(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: this one, or else it with ``#2``, ``#3`` and so on behind it."""
    names = (f"{name}#{number}" if number > 1 else name for number in itertools.count(1))
    return next(one for one in names if one not in taken)
