"""Checks of the settings of `Replicas`."""

import math
from collections.abc import Mapping

from streaminfer._internal.validation import check_number

__all__ = ["is_above_1", "zone_penalties"]


def zone_penalties(given: object) -> tuple[dict[str, float], float]:
    """Return the penalties of single zones, and that of all others.

    Raises:
        TypeError, ValueError: neither a number above 1 nor a mapping to such numbers.
    """
    what = "a finite number above 1, or a mapping of zone to such numbers"
    if not isinstance(given, Mapping):
        return {}, check_number("zone_penalty", given, what, is_above_1)
    checked = {zone: check_number("zone_penalty", value, what, is_above_1) for zone, value in given.items()}
    return checked, 2.0


def is_above_1(number: float) -> bool:
    """Say whether a number is finite and above 1."""
    return 1.0 < number < math.inf
