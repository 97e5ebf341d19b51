"""Unique names for objects with the same name."""

import itertools
from collections.abc import Container

__all__ = ["unique_name"]


def unique_name(name: str, used: Container[str]) -> str:
    """Return the name if it is free, otherwise the name with the first free suffix of ``#2``, ``#3`` and so on."""
    names = (f"{name}#{number}" if number > 1 else name for number in itertools.count(1))
    return next(one for one in names if one not in used)
