"""The loads at which two ways still have 99 % of chunks on time, and what their repeats allow to say about the ratio.

*Design.* A way *holds* the highest load that had at least 99 % of chunks on time, if no more than `FORGIVEN` lower
loads missed that: a short disturbance can hit a window. The limit is interpolated between it and the next load. A limit
outside the sweep is known from one side only: it is an interval, and so is the ratio of two limits. Each repeat has a
limit for each way, and so have the medians over the repeats, the lines of the figure.

The ratio of the medians' limits is stated only if the repeats agree: their ratios lie within a factor of `SPREAD`, on
one side of 1, and the stated ratio lies among them. If it is 1 within `LEVEL`, or if there are ratios on both sides,
both ways hold about the same, provided that the ratios lie within `SAME` of each other. If not, or if a limit is known
from one side only, the statement is the bound that every repeat and the medians support, provided that it is at least
`SAME` away from 1. Otherwise it is too noisy to tell; or, where limits of every repeat are known from one side only and
those of each way lie within `SPREAD`, the loads do not reach far enough.
"""

import enum
import math
from collections.abc import Sequence

import attrs

from demo.findings import ENOUGH, LoadPoint, Sweep

__all__ = ["FORGIVEN", "MINIMUM_REPEATS", "Comparison", "Limit", "Verdict", "compare", "find_limit"]

SPREAD = 2.0
"""Largest ratio over the smallest, where one number is stated."""
SAME = 1.25
"""Within this factor there is little difference: of repeats on both sides of 1, and of a bound from 1."""
LEVEL = 1.05
"""A ratio nearer to 1 would be stated as 1.0 times: it is no difference."""
MINIMUM_REPEATS = 3
FORGIVEN = 1
"""Loads that may have missed below the one that is held."""


class Verdict(enum.Enum):
    """Kinds of statement that a comparison can make."""

    RATIO = "ratio"
    SAME = "about the same"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    TOO_NOISY = "too noisy to tell"
    NEITHER = "neither held"
    BOTH = "both held every load"


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
        ratio: batched over unbatched; of the medians' limits, or the bound where the verdict is a bound; NaN otherwise.
        ratios: for each repeat.
        batched: limits of the batched way, for each repeat.
        unbatched: limits of the unbatched way, for each repeat.
        batched_median: limit of the batched way's medians.
        unbatched_median: limit of the unbatched way's medians.
    """

    verdict: Verdict
    ratio: float
    ratios: tuple[Limit, ...]
    batched: tuple[Limit, ...]
    unbatched: tuple[Limit, ...]
    batched_median: Limit
    unbatched_median: Limit

    @property
    def reaches_too_little(self) -> bool:
        """Whether no repeat has more than a bound of the ratio, though the limits of each way agree."""
        return not any(ratio.exact for ratio in self.ratios) and all(
            max(limit.low for limit in limits) <= SPREAD * min(limit.high for limit in limits)
            for limits in (self.batched, self.unbatched)
        )


def find_limit(points: Sequence[LoadPoint]) -> Limit:
    """Return the limit in one repeat, from its points by ascending load."""
    held: int | None = None
    missed = 0
    for number, point in enumerate(points):
        if point.share_on_time >= ENOUGH:
            held = number
        elif (missed := missed + 1) > FORGIVEN:
            break
    if held is None:
        return Limit(0.0, points[0].load)
    last = points[held]
    if held + 1 == len(points):
        return Limit(last.load, math.inf)
    above = points[held + 1]
    part = (last.share_on_time - ENOUGH) / (last.share_on_time - above.share_on_time)
    load = last.load * (above.load / last.load) ** part  # loads are spaced by factors
    return Limit(load, load)


def compare(sweep: Sweep) -> Comparison:
    """Compare both ways of a sweep."""
    batched, unbatched = (tuple(find_limit(points) for points in curve.repeats) for curve in sweep.curves)
    ratios = tuple(one.over(other) for one, other in zip(batched, unbatched, strict=True))
    middle = tuple(find_limit(curve.medians()) for curve in sweep.curves)
    limits = (*batched, *unbatched)
    if not any(limit.low for limit in limits):
        verdict, ratio = Verdict.NEITHER, math.nan
    elif all(limit.high == math.inf for limit in limits):
        verdict, ratio = Verdict.BOTH, math.nan
    else:
        verdict, ratio = _judge(ratios, middle[0].over(middle[1]))
    return Comparison(verdict, ratio, ratios, batched, unbatched, *middle)


def _judge(ratios: Sequence[Limit], middle: Limit) -> tuple[Verdict, float]:
    """Return the verdict and the ratio or bound, from the ratios of the repeats and that of the medians."""
    if len(ratios) < MINIMUM_REPEATS:
        return Verdict.TOO_NOISY, math.nan
    lowest, highest = min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios)
    if lowest <= middle.low == middle.high <= highest <= SPREAD * lowest:
        if (lowest > 1 or highest < 1) and not 1 / LEVEL < middle.low < LEVEL:
            return Verdict.RATIO, middle.low
        if highest <= SAME * lowest:
            return Verdict.SAME, middle.low
    lowest, highest = min(lowest, middle.low), max(highest, middle.high)
    if lowest >= SAME:
        return Verdict.AT_LEAST, lowest
    if highest <= 1 / SAME:
        return Verdict.AT_MOST, highest
    return Verdict.TOO_NOISY, math.nan
