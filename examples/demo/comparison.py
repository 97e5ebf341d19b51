"""Comparison of the loads at which two ways still have 99 % of chunks on time, as far as the repeats support it.

*Design.* A way *holds* the highest load with at least 99 % of chunks on time, if at most `FORGIVEN` lower loads missed
that, because a short disturbance can hit a window. Its limit is interpolated between that load and the next one. A
limit outside the measured loads is known from one side only: it is an interval, and so is the ratio of two limits. Each
repeat has a limit for each way, and so do the medians over the repeats, which are the lines of the figure.

The repeats *agree* if their ratios lie within a factor of `SPREAD`, and the ratio of the medians is exact and lies
among them. The first rule that applies gives the verdict:

1. The ratio of the medians, if the repeats agree, all on one side of 1, and that ratio is not 1 within `LEVEL`.
2. About the same, if the repeats agree and their ratios lie within `SAME` of each other.
3. The bound that every repeat and the medians support, if it is at least `SAME` away from 1.
4. Otherwise too noisy to tell. If no repeat has an exact ratio and the limits of each way lie within `SPREAD`, the
   loads do not reach far enough.
"""

import enum
import math
from collections.abc import Sequence

import attrs

from demo.findings import ENOUGH, LoadPoint, Sweep

__all__ = ["FORGIVEN", "MINIMUM_REPEATS", "Comparison", "Limit", "Verdict", "compare", "find_limit"]

SPREAD = 2.0
"""Largest ratio over the smallest for which one number is stated."""
SAME = 1.25
"""Factor below which a difference is small: between repeats on both sides of 1, and between a bound and 1."""
LEVEL = 1.05
"""A ratio nearer to 1 would be shown as 1.0 times, which is no difference."""
MINIMUM_REPEATS = 3
FORGIVEN = 1
"""Number of loads below the held one that may have missed."""


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
        low: 0 if no load was held.
        high: infinite if the highest load was held.
    """

    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether the limit lies inside the measured loads."""
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
        ratio: batched over unbatched, of the medians' limits, or the bound if the verdict is a bound; otherwise NaN.
        ratios: ratio of each repeat.
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
        """Whether every repeat has only a bound of the ratio, although the limits of each way agree."""
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
    """Compare both ways at the same loads."""
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
    """Return the verdict, and the ratio or bound, from the ratios of the repeats and the ratio of the medians."""
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
