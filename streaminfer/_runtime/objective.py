"""Objectives whose error budget a guard reads."""

from typing import Any

__all__ = ["is_slo_or_none"]


def is_slo_or_none(value: Any, *, with_threshold: bool = False) -> bool:
    """Whether ``value`` is ``None`` or has what guards read of an `SLO`, without loading that class."""
    if value is None:
        return True
    return callable(getattr(value, "burning", None)) and (not with_threshold or hasattr(value, "threshold_s"))
