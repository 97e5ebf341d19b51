"""The loads at which two ways still have 99 % of chunks on time, and what their repeats allow to say about the ratio.

*Design.* In each repeat a way *holds* the highest load of the sweep that had at least 99 % of chunks on time; the limit
is interpolated between it and the next load. A short disturbance can only lower a share, so a lower load that missed
does not count against a higher one that was held. A limit outside the sweep is known from one side only: it is an
interval, and so is the ratio of two limits.

The ratio of the median limits is stated only if the repeats agree: all ratios can lie within a factor of `SPREAD`, and
all are on one side of 1 (or within `SAME` of each other, then both ways hold about the same). If they differ more, or a
limit is known from one side only, the statement is the bound that every repeat supports, provided that it is at least
`SAME` away from 1. Otherwise it is too noisy to tell. The ratio of the medians of paired repeats lies between the
smallest and the largest of their ratios, so no statement lies outside what the repeats say.
"""

import enum
import math
import statistics
from collections.abc import Sequence

import attrs

from demo.findings import ENOUGH, Curve, LoadPoint, Sweep

__all__ = ["MINIMUM_REPEATS", "Comparison", "Limit", "Verdict", "compare", "find_limit"]

SPREAD = 2.0
"""Largest ratio over the smallest, where one number is stated."""
SAME = 1.25
"""Within this factor there is little difference: of repeats on both sides of 1, and of a bound from 1."""
MINIMUM_REPEATS = 3


class Verdict(enum.Enum):
    """Kinds of statement that a comparison can make."""

    RATIO = "ratio"
    SAME = "about the same"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    TOO_NOISY = "too noisy to tell"
    NEITHER = "neither held"


@attrs.frozen
class Limit:
    """The load at which 99 % of chunks are just on time: between `low` and `high`, times the calibrated rate.

    Attributes:
        low: 0 where no load was held.
        high: infinite where the highest load was held.
    """

    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether the limit lies inside the sweep."""
        return self.low == self.high

    def over(self, other: "Limit") -> "Limit":
        """Return the interval of the ratio to another limit."""
        return Limit(
            self.low / other.high if other.high < math.inf else 0.0,
            self.high / other.low if other.low > 0 else math.inf,
        )


@attrs.frozen
class Comparison:
    """Limits of two ways, and the statement that their repeats support.

    Attributes:
        verdict: kind of the statement.
        ratio: batched over unbatched; of the median limits, or the bound where the verdict is a bound; NaN otherwise.
        ratios: for each repeat.
        batched: limits of the batched way, for each repeat.
        unbatched: limits of the unbatched way, for each repeat.
    """

    verdict: Verdict
    ratio: float
    ratios: tuple[Limit, ...]
    batched: tuple[Limit, ...]
    unbatched: tuple[Limit, ...]


def find_limit(points: Sequence[LoadPoint]) -> Limit:
    """Return the limit in one repeat, from its points by ascending load."""
    held = [number for number, point in enumerate(points) if point.share_on_time >= ENOUGH]
    if not held:
        return Limit(0.0, points[0].load)
    last = points[held[-1]]
    if held[-1] + 1 == len(points):
        return Limit(last.load, math.inf)
    above = points[held[-1] + 1]
    part = (last.share_on_time - ENOUGH) / (last.share_on_time - above.share_on_time)
    load = last.load * (above.load / last.load) ** part  # loads are spaced by factors
    return Limit(load, load)


def median_limit(limits: Sequence[Limit]) -> Limit:
    """Return the medians of both ends."""
    return Limit(statistics.median(limit.low for limit in limits), statistics.median(limit.high for limit in limits))


def compare(sweep: Sweep) -> Comparison:
    """Compare both ways of a sweep."""
    batched, unbatched = (_limits(curve) for curve in sweep.curves)
    ratios = tuple(one.over(other) for one, other in zip(batched, unbatched, strict=True))
    verdict = _judge(ratios, [limit.low == 0.0 for limit in batched], [limit.low == 0.0 for limit in unbatched])
    ratio = math.nan
    if verdict in {Verdict.RATIO, Verdict.SAME}:
        ratio = median_limit(batched).over(median_limit(unbatched)).low
    elif verdict is Verdict.AT_LEAST:
        ratio = min(ratio.low for ratio in ratios)
    elif verdict is Verdict.AT_MOST:
        ratio = max(ratio.high for ratio in ratios)
    return Comparison(verdict, ratio, ratios, batched, unbatched)


def _limits(curve: Curve) -> tuple[Limit, ...]:
    return tuple(find_limit(points) for points in curve.repeats)


def _judge(ratios: Sequence[Limit], batched_never: Sequence[bool], unbatched_never: Sequence[bool]) -> Verdict:
    if all(batched_never) and all(unbatched_never):
        return Verdict.NEITHER
    lowest, highest = min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios)
    if len(ratios) < MINIMUM_REPEATS:
        return Verdict.TOO_NOISY
    if highest <= SPREAD * lowest:  # so both are above 0 and finite: each limit lies inside the sweep
        if lowest > 1 or highest < 1:
            return Verdict.RATIO
        return Verdict.SAME if highest <= SAME * lowest else Verdict.TOO_NOISY
    if lowest >= SAME:
        return Verdict.AT_LEAST
    return Verdict.AT_MOST if highest <= 1 / SAME else Verdict.TOO_NOISY
