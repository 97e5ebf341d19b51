"""How exactly a quantile of a run is known, where its latencies depend on each other.

*Design.* Requests of one moment share a queue, so their latencies are correlated and the textbook error of a quantile,
which assumes independent ones, is too small by a factor that can exceed three. The run is cut into blocks of equal
duration. Blocks are drawn with replacement, and the quantile of what was drawn is computed again; the deviation of its
logarithm is the error. Dependence inside a block stays; blocks themselves must be independent, which the
autocorrelation of their tail shares checks: while it is significant, neighbors are merged into longer blocks. A run
whose blocks stay correlated, or whose halves differ, changes too slowly for its length.

The bootstrap says little about a quantile in a gap between latencies, such as one between hits and misses of a cache.
There the shares of slow requests, which have no gaps, tell more: :func:`differ` compares them.

*Complexity.* Drawing is a product of matrices, draws × blocks × bins of the upper tail: about 50 ms for any run.

References: H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics
17 (1989); S. N. Lahiri, "Resampling methods for dependent data", Springer 2003.
"""

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.distributions.quantiles import student_quantile
from streaminfer.loadtest.quantiles import quantile_of

__all__ = ["LEAST_BLOCKS", "Blocks", "differ"]

MOST_BLOCKS = 40
LEAST_BLOCKS = 10
DRAWS = 500
_BINS = 1024
_TAIL = 4.0
"""Of the quantile's own share: the part of the distribution in which drawn quantiles are looked for."""
_CORRELATED = 1.645
"""Deviations of an autocorrelation above which blocks are merged: one-sided 5 %."""
_UNSTEADY = 0.003
"""Probability that a steady run is taken for one whose halves differ."""

Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class Blocks:
    """A run, cut into blocks.

    Attributes:
        values: latencies of each block, seconds.
        shares: of the requests of each block that are in the run's tail.
        effective: how many blocks the tail is spread over, by Kish's formula: as many as there are if each has the same
            share of the slowest requests, 1 if one has them all.
    """

    values: Sequence[Floats]
    shares: Floats
    effective: float

    @classmethod
    def of(cls, latencies_s: Floats, due_s: Floats, q: float) -> "Blocks":
        """Cut a run into as many blocks as are independent, at most 40 and at least 10.

        Args:
            latencies_s: in the order in which the requests were due.
            due_s: when they were, ascending.
            q: the quantile that is of interest.
        """
        threshold = quantile_of(latencies_s, q)
        count = MOST_BLOCKS
        while True:
            bounds = np.searchsorted(due_s, np.linspace(due_s[0], due_s[-1], count + 1)[1:-1])
            values = [part for part in np.split(latencies_s, bounds) if part.size]
            shares = _shares_above(values, threshold)
            if _are_independent(shares) or count // 2 < LEAST_BLOCKS:
                counts = shares * [part.size for part in values]
                return cls(values, shares, float(counts.sum() ** 2 / (counts @ counts)))
            count //= 2

    @property
    def are_steady(self) -> bool:
        """Whether the tail does not change slowly: neighbors are independent, and both halves of the run alike."""
        half = len(self.values) // 2
        return _are_independent(self.shares) and not _means_differ(self.shares[:half], self.shares[half:], _UNSTEADY)

    def log_error(self, q: float, seed: int) -> float:
        """Return the standard error of the logarithm of a quantile."""
        sizes = np.array([part.size for part in self.values])
        everything = np.concatenate(self.values)
        tail = min(everything.size, math.ceil(_TAIL * (1 - q) * everything.size) + 1)
        order = np.argsort(everything, kind="stable")[::-1][:tail]
        step = -(-tail // _BINS)
        counts = np.zeros((sizes.size, -(-tail // step)))
        np.add.at(counts, (np.repeat(np.arange(sizes.size), sizes)[order], np.arange(tail) // step), 1.0)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(sizes.size, np.full(sizes.size, 1 / sizes.size), size=DRAWS).astype(np.float64)
        above = np.cumsum(drawn @ counts, axis=1)
        wanted = (1 - q) * (drawn @ sizes)
        bins = np.minimum((above < wanted[:, np.newaxis]).sum(axis=1), counts.shape[1] - 1)
        return float(np.std(np.log(everything[order][np.minimum(bins * step, tail - 1)])))


def differ(one: Blocks, other: Blocks, q: float, false_alarm: float) -> bool:
    """Return whether the shares of two runs above their common quantile differ.

    Args:
        one: a run.
        other: another.
        q: the quantile.
        false_alarm: probability that they are found to differ where they do not.
    """
    threshold = quantile_of(np.concatenate([*one.values, *other.values]), q)
    return _means_differ(_shares_above(one.values, threshold), _shares_above(other.values, threshold), false_alarm)


def _shares_above(blocks: Sequence[Floats], threshold: float) -> Floats:
    return np.array([np.mean(values >= threshold) for values in blocks])


def _are_independent(shares: Floats) -> bool:
    deviations = shares - shares.mean()
    power = float(deviations @ deviations)
    return float(deviations[1:] @ deviations[:-1]) <= _CORRELATED / math.sqrt(shares.size) * power


def _means_differ(one: Floats, other: Floats, false_alarm: float) -> bool:
    error = math.sqrt(one.var(ddof=1) / one.size + other.var(ddof=1) / other.size)
    limit = student_quantile(1 - false_alarm / 2, min(one.size, other.size) - 1)
    return abs(float(one.mean() - other.mean())) > limit * error
