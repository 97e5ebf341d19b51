"""Public names of a package that load their modules at first use (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_attributes"]

_NONE: Mapping[str, str] = {}


def lazy_attributes(
    package: str, homes: Mapping[str, str], modules: Mapping[str, str] = _NONE
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        homes: the module that defines each name, without ``streaminfer.``.
        modules: likewise the modules that are attributes themselves.
    """

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(f"streaminfer.{homes[name]}"), name)
        elif name in modules:
            value = importlib.import_module(f"streaminfer.{modules[name]}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get, list_names
