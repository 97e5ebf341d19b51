"""Objectives whose error budget a guard reads."""

from typing import Any

__all__ = ["is_slo_or_none"]


def is_slo_or_none(value: Any) -> bool:
    """Whether ``value`` is ``None`` or has what guards read of an `SLO`, without loading that class."""
    return value is None or (callable(getattr(value, "burning", None)) and hasattr(value, "threshold_s"))
