"""Eviction policies, one module each; `Eviction` lists their names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

from streaminfer._internal.validation import check_choice

if TYPE_CHECKING:
    from streaminfer.caching.table._eviction_cy import EvictionOrder

__all__ = ["Eviction", "policy_of"]

Eviction = Literal["lru", "s3fifo"]
"""Names of policies; the policy ``NAME`` is the class ``Policy`` of the module ``_NAME_cy``."""


def policy_of(name: object) -> type[EvictionOrder]:
    """Return the policy class of a name.

    Raises:
        TypeError, ValueError: there is no policy of that name.
    """
    choice: Any = check_choice("eviction", name, get_args(Eviction))
    policy: type[EvictionOrder] = import_module(f"{__name__}._{choice}_cy").Policy
    return policy
