"""How exactly a quantile of a run is known, where its latencies depend on each other.

*Design.* Requests of one moment share a queue, so their latencies are correlated and the textbook error of a quantile,
which assumes independent ones, is too small by a factor that can exceed three. The run is cut into blocks of equal
duration. Blocks are drawn with replacement, and the quantile of what was drawn is computed again; the deviation of its
logarithm is the error. Dependence inside a block stays; blocks themselves must be independent, which the
autocorrelation of their tail shares checks: while it is significant, neighbors are merged into longer blocks.

*Complexity.* Drawing is a product of matrices, draws × blocks × bins of the upper tail: about 50 ms for any run.

References: H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics
17 (1989); S. N. Lahiri, "Resampling methods for dependent data", Springer 2003.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_BLOCKS", "Blocks", "quantile_of", "student_quantile"]

MOST_BLOCKS = 40
LEAST_BLOCKS = 10
DRAWS = 500
_BINS = 1024
_TAIL = 4.0
"""Of the quantile's own share: the part of the distribution in which drawn quantiles are looked for."""
_CORRELATED = 1.645
"""Deviations of an autocorrelation above which blocks are merged: one-sided 5 %."""

Floats = NDArray[np.float64]


@attrs.frozen(eq=False)
class Blocks:
    """A run, cut into blocks.

    Attributes:
        values: latencies of each block, seconds.
        correlation: of the tail shares of neighboring blocks.
        effective: how many blocks the tail is spread over, by Kish's formula: as many as there are if each has the same
            share of the slowest requests, 1 if one has them all.
    """

    values: Sequence[Floats]
    correlation: float
    effective: float

    @classmethod
    def of(cls, latencies_s: Floats, due_s: Floats, q: float) -> "Blocks":
        """Cut a run into as many blocks as are independent, at most 40 and at least 10.

        Args:
            latencies_s: in the order in which the requests were due.
            due_s: when they were, ascending.
            q: the quantile that is of interest.
        """
        high = latencies_s >= quantile_of(latencies_s, q)
        count = MOST_BLOCKS
        while True:
            bounds = np.searchsorted(due_s, np.linspace(due_s[0], due_s[-1], count + 1)[1:-1])
            shares = np.array([part.mean() if part.size else 0.0 for part in np.split(high, bounds)])
            correlation = _autocorrelation(shares)
            if correlation <= _CORRELATED / math.sqrt(count) or count // 2 < LEAST_BLOCKS:
                counts = np.array([part.sum() for part in np.split(high, bounds)], np.float64)
                effective = float(counts.sum() ** 2 / max(counts @ counts, 1.0))
                return cls([part for part in np.split(latencies_s, bounds) if part.size], correlation, effective)
            count //= 2

    @property
    def are_independent(self) -> bool:
        """Whether neighbors are not significantly correlated."""
        return self.correlation <= _CORRELATED / math.sqrt(len(self.values))

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


def quantile_of(latencies_s: Floats, q: float) -> float:
    """Return the smallest latency that at least a share ``q`` does not exceed."""
    index = max(0, math.ceil(q * latencies_s.size) - 1)
    return float(np.partition(latencies_s, index)[index])


def student_quantile(p: float, degrees: float) -> float:
    """Return a quantile of Student's distribution, from that of the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    return z + (
        (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _autocorrelation(values: Floats) -> float:
    deviations = values - values.mean()
    power = float(deviations @ deviations)
    return float(deviations[1:] @ deviations[:-1]) / power if power else 0.0
