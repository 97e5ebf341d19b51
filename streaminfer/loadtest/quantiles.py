"""Percentiles of latencies: the latency of rank ⌈q · count⌉, as in `LatencyHistogram`, without interpolation."""

import math
from decimal import ROUND_DOWN, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import expected

__all__ = ["quantile_of", "quantiles_of", "say_latency", "say_share"]

Floats = NDArray[np.float64]


def quantiles_of(values: Floats, qs: ArrayLike) -> Floats:
    """Return, for each share, the smallest value that at least this share of the values does not exceed.

    Raises:
        TypeError, ValueError: ``qs`` has other values than shares from 0 to 1.
    """
    shares = real_array("q", qs)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(expected("q", "a share from 0 to 1", qs))
    exact = np.nextafter(shares * values.size, 0)  # 0.07 · 100 must not round up to rank 8
    ranks = np.clip(np.ceil(exact).astype(int), 1, values.size)
    result: Floats = np.partition(values, np.unique(ranks) - 1)[ranks - 1]
    return result


def quantile_of(values: Floats, q: float) -> float:
    """Return one percentile; see `quantiles_of`."""
    return float(quantiles_of(values, q))


def say_latency(seconds: float) -> str:
    """Return a latency as text in a suitable unit; an infinite latency is "no response"."""
    return "no response" if math.isinf(seconds) else format_duration(seconds)


def say_share(share: float, decimals: int = 2) -> str:
    """Return a share as a percentage, rounded down: only all is 100.00%, and a missed objective does not look kept."""
    return f"{(100 * Decimal(repr(float(share)))).quantize(Decimal(10) ** -decimals, ROUND_DOWN)}%"
