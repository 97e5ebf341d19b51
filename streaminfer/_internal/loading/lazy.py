"""Public names of a package that load their modules at first use (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

__all__ = ["lazy_attributes"]

_NONE: Mapping[str, str] = {}


def lazy_attributes(
    package: str,
    homes: Mapping[str, Sequence[str]],
    modules: Mapping[str, str] = _NONE,
    optional: Collection[str] = (),
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: its ``__name__``.
        homes: names to export, by the module (without ``streaminfer.``) that defines them.
        modules: modules that are attributes of the package themselves, by attribute name.
        optional: names that need an extra; without it ``__dir__`` omits them, because `help` reads what it lists.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home_of:
            value = getattr(importlib.import_module(f"streaminfer.{home_of[name]}"), name)
        elif name in modules:
            value = importlib.import_module(f"streaminfer.{modules[name]}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def is_there(name: str) -> bool:
        try:
            get(name)
        except ImportError:
            return False
        return True

    def list_names() -> list[str]:
        return sorted(name for name in sys.modules[package].__all__ if name not in optional or is_there(name))

    return get, list_names
