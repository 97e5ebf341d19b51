"""Block bootstrap: the error of a latency quantile when latencies depend on each other.

*Design.* Requests at the same time share a queue, so their latencies are correlated. The textbook error of a quantile
assumes independent latencies; it can be more than three times too small. The bootstrap cuts the run into blocks of
equal duration, draws blocks with replacement, and computes the quantile of each draw. The standard deviation of the
quantile's logarithm is the error. This keeps the dependence inside a block, but the blocks must be independent. The
autocorrelation of their tail shares is the test: while it is significant, neighbors are merged into longer blocks. If
the blocks stay correlated, or the halves of the run differ, the run changes too slowly for its length.

The bootstrap says little about a quantile in a gap between latencies, for example between cache hits and cache misses.
In this case :func:`differ` compares the shares of slow requests, which have no gaps.

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
"""Size of the upper tail in which drawn quantiles are searched, as a multiple of ``1 - q``."""
_CORRELATED = 1.645
"""Standard deviations of an autocorrelation above which blocks are merged: one-sided 5 %."""
_UNSTEADY = 0.003
"""Probability that the halves of a steady run are found to differ."""

Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class Blocks:
    """A run, cut into blocks.

    Attributes:
        values: latencies of each block, seconds.
        shares: share of each block's requests that are in the tail of the run.
        effective: effective number of blocks that the tail is spread over, by Kish's formula: the number of blocks if
            each has equally many of the slowest requests, 1 if one block has them all.
    """

    values: Sequence[Floats]
    shares: Floats
    effective: float

    @classmethod
    def of(cls, latencies_s: Floats, due_s: Floats, q: float) -> "Blocks":
        """Cut a run into as many independent blocks as possible, at most 40 and at least 10.

        Args:
            latencies_s: latencies in the order of due time.
            due_s: due times, ascending.
            q: the quantile to examine.
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
        """True if the tail is stationary: neighboring blocks are independent, and both halves of the run agree."""
        half = len(self.values) // 2
        return _are_independent(self.shares) and not _means_differ(self.shares[:half], self.shares[half:], _UNSTEADY)

    def log_error(self, q: float, seed: int) -> float:
        """Return the standard error of the logarithm of a quantile."""
        sizes = np.array([part.size for part in self.values])
        latencies = np.concatenate(self.values)
        tail = min(latencies.size, math.ceil(_TAIL * (1 - q) * latencies.size) + 1)
        order = np.argsort(latencies, kind="stable")[::-1][:tail]
        step = -(-tail // _BINS)
        counts = np.zeros((sizes.size, -(-tail // step)))
        np.add.at(counts, (np.repeat(np.arange(sizes.size), sizes)[order], np.arange(tail) // step), 1.0)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(sizes.size, np.full(sizes.size, 1 / sizes.size), size=DRAWS).astype(np.float64)
        above = np.cumsum(drawn @ counts, axis=1)
        tail_counts = (1 - q) * (drawn @ sizes)
        bins = np.minimum((above < tail_counts[:, np.newaxis]).sum(axis=1), counts.shape[1] - 1)
        return float(np.std(np.log(latencies[order][np.minimum(bins * step, tail - 1)])))


def differ(first: Blocks, second: Blocks, q: float, false_alarm: float) -> bool:
    """Return whether two runs differ in their share of requests above their common quantile.

    Args:
        first: a run.
        second: another run.
        q: the quantile.
        false_alarm: probability of a difference found by chance.
    """
    threshold = quantile_of(np.concatenate([*first.values, *second.values]), q)
    return _means_differ(_shares_above(first.values, threshold), _shares_above(second.values, threshold), false_alarm)


def _shares_above(blocks: Sequence[Floats], threshold: float) -> Floats:
    return np.array([np.mean(values >= threshold) for values in blocks])


def _are_independent(shares: Floats) -> bool:
    deviations = shares - shares.mean()
    power = float(deviations @ deviations)
    return float(deviations[1:] @ deviations[:-1]) <= _CORRELATED / math.sqrt(shares.size) * power


def _means_differ(first: Floats, second: Floats, false_alarm: float) -> bool:
    error = math.sqrt(first.var(ddof=1) / first.size + second.var(ddof=1) / second.size)
    limit = student_quantile(1 - false_alarm / 2, min(first.size, second.size) - 1)
    return abs(float(first.mean() - second.mean())) > limit * error
