"""Latency of a request: the sum of access, backhaul, transfers and the delay at the replica, as distributions.

All parts are independent. They are added as histograms with bins that end at multiples of a step. Values are rounded
up, so a sum of k parts is over-estimated by at most k steps and never under-estimated.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streaminfer.placement.distribution import Distribution

__all__ = ["BINS", "histograms", "rest_within", "sum_quantile"]

BINS = 500
"""Bins within an SLO: one is 0.2 % of it."""

_ROUNDING = 1e-9

Floats = NDArray[np.float64]


def histograms(distributions: Sequence[Distribution], offsets_s: Sequence[float], step_s: float, bins: int) -> Floats:
    """Return the shares of values in bins, each value rounded up.

    Args:
        distributions: one for each row, at least one.
        offsets_s: added to the values of each.
        step_s: bin k ends at ``k * step_s``.
        bins: number of the last bin; longer values are in no bin.

    Returns:
        Shape (len(distributions), bins + 1), float64.
    """
    rows = np.repeat(np.arange(len(distributions)), [one.values_s.size for one in distributions])
    values_s = np.concatenate([one.values_s for one in distributions]) + np.asarray(offsets_s)[rows]
    at = np.ceil(values_s / step_s - _ROUNDING)
    in_range = at <= bins
    shares = np.concatenate([one.shares for one in distributions])[in_range]
    sums = np.bincount(
        rows[in_range] * (bins + 1) + at[in_range].astype(np.int64), shares, len(distributions) * (bins + 1)
    )
    return sums.astype(np.float64).reshape(len(distributions), bins + 1)


def rest_within(parts: Sequence[Floats], delay_shares: Floats) -> Floats:
    """Return the share of requests with parts and delay that fit into the SLO minus the backhaul.

    Args:
        parts: histograms of the access and the transfers.
        delay_shares: share of delays within 0, 1, 2, … steps.

    Returns:
        Shape of ``delay_shares``: entry k is for a backhaul of k steps.
    """
    shares = delay_shares
    for part in parts:
        shares = np.convolve(part, shares)[: shares.size]
    return shares[::-1]


def sum_quantile(parts: Sequence[tuple[float, Floats]], share: float, step_s: float) -> float:
    """Return the smallest multiple of the step that ``share`` of the requests stay within; ``inf`` beyond the bins.

    Args:
        parts: for each path of requests, its weight, and the share of its requests within 0, 1, 2, … steps.
        share: share of all requests.
        step_s: step of the bins.
    """
    weights = np.array([weight for weight, _ in parts])
    mean_shares = weights @ np.array([shares for _, shares in parts]) / weights.sum()
    at = int(np.searchsorted(mean_shares, share - _ROUNDING))
    return at * step_s if at < len(mean_shares) else float("inf")
