"""Instants and durations: the instant that never comes, and durations as text with a suitable unit."""

import math

__all__ = ["NEVER_NS", "format_duration"]

NEVER_NS = 2**63 - 1
"""The largest instant of 64 bits: the deadline of a request without one, even if the batcher has an objective."""

_UNITS = (
    (86400.0, "days", 2.0),
    (3600.0, "h", 2.0),
    (60.0, "min", 2.0),
    (1.0, "s", 1.0),
    (1e-3, "ms", 1.0),
    (1e-6, "µs", 1.0),
    (1e-9, "ns", -math.inf),
)
"""Seconds of each unit, its name, and the smallest figure for which it is used: 90 s, but 2 min."""


def format_duration(seconds: float | None, digits: int = 4) -> str:
    """Return a duration with ``digits`` significant digits: ``12.34 ms``, ``30 days``; ``None`` is ``not known``."""
    if seconds is None:
        return "not known"
    if math.isnan(seconds):
        return "nan"
    size, unit = next((size, unit) for size, unit, least in _UNITS if seconds >= least * size)
    figure = seconds / size
    # large figures as whole numbers, because `g` would write an exponent
    return f"{figure:,.0f} {unit}" if figure >= 10.0 ** (digits - 1) else f"{figure:.{digits}g} {unit}"
