"""Search for the capacity at an SLO: a state machine that selects the next rate and estimates the capacity.

*Design.* The search begins with a ramp: it multiplies the rate by a constant factor until a step misses the objective.
Then it measures near the crossing, the rate at which the late share is ``1 - objective``. A step is a run at one rate.
The search cuts the requests of a step into blocks, which give the late share and its variance, correlation included.
Near the crossing the logarithm of the late share is almost linear in the logarithm of the rate, so a Poisson regression
estimates the crossing. If the share jumps from nothing to everything, as for a device without noise, no line can be
fitted, and the search halves the interval between two rates.

*Incidents.* A queue makes requests late in incidents. A step at the crossing may have no incident, or one that makes a
third of its requests late. The error of the crossing is therefore the larger of two bootstrap errors: one draws blocks
of each step with replacement, the other draws whole steps. Its degrees of freedom follow from the number of steps over
which the late requests are spread: three incidents are three observations. A few steps are not enough to prove a jump.
A slope from few incidents is often too steep, so the smallest of its likely slopes decides how far from the estimate
the next rates are. A step has surely missed only if it was late throughout.

*Overload.* Some services do not recover from overload: they keep the objective at a rate on the way up, and miss it at
the same rate afterwards. At a jump, the search therefore measures the lower end of its interval again before it ends.
If kept rates are surely missed twice, the search forgets the steps from before the overload. The result is then the
capacity of a service that has been overloaded, and ``reason`` says so.

*Termination.* The search ends when the interval is narrower than the tolerance, or when the steps are used up.

*Complexity.* O(draws × steps × blocks) for each estimate: about a millisecond.

References: the same question is MLPerf's "max QPS under a latency constraint", found there by bisection without an
error; the fit is a quantal response model as in bioassay (D. J. Finney, "Probit analysis", 1971).
"""

import html
import math
from collections.abc import Mapping
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.distributions.quantiles import student_quantile
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_amount, check_number, expected
from streaminfer.loadtest.arrivals import check_run_s
from streaminfer.simulation.arrivals import check_size

__all__ = ["Capacity", "CapacitySearch", "Step", "check_rates"]

Floats = NDArray[np.float64]

_LEAST_REQUESTS = 200
"""Fewest requests of a step, at the lowest rate."""
CLIMB = 1.25
"""Ratio between the rates of successive steps of the ramp."""
BLOCKS = 20
DRAWS = 400
_FIT_DISTANCE = 0.12
"""Steps take part in the fit if the logarithm of their rate is within this distance of the estimate's."""
_SLOPE_SHARES = (0.1, 8.0)
"""Range of late shares, as multiples of the allowed share, from which a slope can be learned; a larger share is not by
chance. If the objective is low, the upper end is halfway between the allowed share and 1."""
_MAX_LOG_SPAN = 2.0
"""Largest difference of the logarithm of the late share across the rates around the estimate."""
_SURE_ERRORS = 3.0
"""Standard errors by which the late share of a surely missed step exceeds what a few incidents explain."""
_LEAST_STEPS = 3
_MIN_STEPS_PER_SIDE = 4
"""Fewest steps on each side of the estimate; fewer do not show how much steps vary."""
_STOPPING = 1.35
"""Factor that widens the interval, because a search ends sooner when it happens to underestimate its error."""
_NEWTON_STEPS = 12
_FIRST_SLOPE = 15.0
_DEVIATION_QUANTILES = (0.1587, 0.8413)
"""Quantiles one standard deviation below and above the median; the few draws without a slope do not affect them."""
_LEAST_SLOPE = 2.0
_MOST_SLOPE = 1000.0
_MAX_EXTRAPOLATION = 0.06
"""Largest distance of the estimate from the middle of the steps, in the logarithm of the rate; the interval still
includes the crossing of the fit."""
_MAX_CROSSING = math.log(2.0)
"""Largest distance of the crossing from the middle of the steps, in the logarithm of the rate. A line that hardly rises
reaches it, or one through steps without late requests."""
_SPREAD = 0.12
"""Relative width of the range of rates around the estimate that gives the fit its slope; a steep slope narrows it."""


@attrs.frozen(eq=False)
class Step:
    """A run at one rate.

    Attributes:
        rate: requests per second.
        sent: requests in each block.
        late: requests of each block that were late or got no response.
    """

    rate: float
    sent: NDArray[np.int64]
    late: NDArray[np.int64]

    @classmethod
    def of(cls, rate: float, late: NDArray[np.bool_]) -> "Step":
        """Return the step of a run.

        Args:
            rate: requests per second.
            late: whether each request was late, in the order of due time, without the warm-up.
        """
        blocks = np.array_split(late, min(BLOCKS, late.size))
        return cls(rate, np.array([block.size for block in blocks]), np.array([block.sum() for block in blocks]))

    def draw(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Return the late and the sent requests of blocks drawn with replacement, one number per draw."""
        chosen = rng.integers(self.sent.size, size=(DRAWS, self.sent.size))
        return self.late[chosen].sum(axis=1), self.sent[chosen].sum(axis=1)

    @property
    def late_share(self) -> float:
        """Share of the requests of the step that were late."""
        return float(self.late.sum() / self.sent.sum())

    @property
    def late_error(self) -> float:
        """Standard error of `late_share`, from the differences between blocks."""
        shares = self.late / self.sent
        return float(shares.std() / math.sqrt(max(shares.size - 1, 1)))


@attrs.frozen(eq=False)
class Capacity(Snapshot):
    """Highest rate at which a service keeps its objective.

    Attributes:
        rate: requests per second.
        interval: lower and upper end; it covers the capacity with probability ``confidence``.
        confidence: probability of the interval.
        objective: share of requests that must be on time.
        steps: the measured steps, in order.
        reason: why the interval is wider than the tolerance, or another caveat; empty otherwise.
    """

    rate: float
    interval: tuple[float, float]
    confidence: float
    objective: float
    steps: tuple[Step, ...]
    reason: str = ""

    def __str__(self) -> str:
        low, high = self.interval
        text = f"capacity {self.rate:,.4g}/s ({low:,.4g} to {high:,.4g}, {self.confidence:.0%} interval)"
        return f"{text}: {self.reason}" if self.reason else text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"  # a table of statistics would show rates as shares

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return the capacity that `to_dict` stored, with ``None`` for an unknown upper end of the interval."""
        low, high = stored["interval"]
        steps = tuple(Step(it["rate"], np.array(it["sent"]), np.array(it["late"])) for it in stored["steps"])
        return cls(**{**stored, "interval": (low, math.inf if high is None else high), "steps": steps})


def check_rates(low: float, high: float, step_s: float) -> tuple[float, float, float]:
    """Return the range of rates of a search, and the duration of a step.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    low = check_amount("low", low, positive=True)
    high = check_number("high", high, "a number above low", lambda rate: low < rate < math.inf)
    step_s = check_run_s("step_s", step_s)
    if low * step_s < _LEAST_REQUESTS:
        raise ValueError(
            expected("step_s", f"enough seconds for {_LEAST_REQUESTS} requests at the lowest rate", step_s)
        )
    check_size("high * step_s", high * step_s)
    return low, high, step_s


class CapacitySearch:
    """Chooses rates and estimates the capacity.

    Args:
        low: requests per second at which the ramp begins; the service must keep the objective there.
        high: the highest rate to try.
        objective: share of requests that must be on time.
        tolerance: half the relative width of the interval at which the search ends.
        confidence: probability with which the interval covers the capacity.
        most_steps: most steps after the ramp.
        seed: seed of the bootstrap draws.
    """

    def __init__(
        self,
        low: float,
        high: float,
        *,
        objective: float = 0.99,
        tolerance: float = 0.02,
        confidence: float = 0.95,
        most_steps: int = 30,
        seed: int = 0,
    ) -> None:
        self.low, self.high = low, high
        self.objective, self.tolerance, self.confidence = objective, tolerance, confidence
        allowed = self._allowed = 1 - objective
        self._low_share = _SLOPE_SHARES[0] * allowed
        self._high_share = min(_SLOPE_SHARES[1] * allowed, (1 + allowed) / 2)
        self.steps: list[Step] = []
        self._valid_steps: list[Step] = []  # steps since the service changed
        self._most_steps = most_steps
        self._rng = np.random.default_rng(seed)
        self._after_ramp = 0
        self._estimated: tuple[float, float, float] | None = None
        self._slope = _FIRST_SLOPE
        self._reason = self._note = ""

    @property
    def next_rate(self) -> float | None:
        """The rate of the next step; ``None``: the search has ended."""
        if not self.steps:
            return self.low
        if self._estimated is None:
            last = self.steps[-1].rate
            return None if self._reason else min(last * CLIMB, self.high)
        return self._next_around(*self._estimated) if self._after_ramp < self._most_steps else None

    def _next_around(self, rate: float, low: float, high: float) -> float | None:
        """Return the next rate around an estimate and its interval."""
        is_narrow = (high - low) / 2 <= self.tolerance * rate
        if self._is_jump():
            if is_narrow:
                return self._next_beside(min(rate, self.high), low, high)
            if not self._between():
                return min(rate, self.high)  # the middle of the interval, or beside a doubtful step
            low, high = max(low, rate * (1 - _SPREAD / 2)), min(high, rate * (1 + _SPREAD / 2))
            return min(low + (high - low) * (0.5, 0.25, 0.75)[self._after_ramp % 3], self.high)
        if is_narrow and self._is_settled(min(rate, self.high)):
            return None
        offset = min(_SPREAD, _MAX_LOG_SPAN / self._slope) * (-0.5, 0.5, -0.25, 0.25)[self._after_ramp % 4]
        return min(rate * (1 + offset), self.high)

    def _next_beside(self, rate: float, low: float, high: float) -> float | None:
        """Return a rate on the side of a jump that has too few steps; ``None``: both sides have enough."""
        distance = max(_FIT_DISTANCE, math.log(rate / low), math.log(high / rate))
        rates = [step.rate for step in self._valid_steps if abs(math.log(step.rate / rate)) <= distance]
        below = sum(other < rate for other in rates)
        if below < _MIN_STEPS_PER_SIDE or not self._is_confirmed(low):
            return low
        return min(high, self.high) if len(rates) - below < _MIN_STEPS_PER_SIDE else None

    def add(self, step: Step) -> None:
        """Add the step that was measured at :attr:`next_rate`."""
        if self._estimated is not None:
            self._after_ramp += 1
            self._look_for_change(step)
        self.steps.append(step)
        self._valid_steps.append(step)
        # clearly missed: near the crossing half of the steps miss by chance
        if step.late_share >= self._high_share and step.rate <= self.low:
            self._estimated = None
            self._reason = f"the objective is missed at {self.low:,.4g}/s, the lowest rate"
        elif self._estimated is None and step.late_share <= self._allowed:
            if step.rate >= self.high:
                self._reason = f"the objective is kept at {self.high:,.4g}/s, the highest rate that was to be tried"
        else:
            self._estimated = self._estimate()

    def _is_missed(self, step: Step) -> bool:
        """Return whether a step was late throughout, and not only in a few incidents."""
        return step.late_share - _SURE_ERRORS * step.late_error > self._high_share

    def _look_for_change(self, step: Step) -> None:
        """Forget the steps from before an overload, once kept rates have surely been missed twice."""
        highest, missed = 0.0, []
        for each in (*self._valid_steps, step):
            if each.late_share <= self._allowed:
                highest = max(highest, each.rate)
            elif each.rate <= highest and self._is_missed(each):
                missed.append(each)
        if len(missed) > 1:
            self._valid_steps = missed[:-1]
            self._note = f"{highest:,.4g}/s kept the objective before overload, and {step.rate:,.4g}/s misses it after"

    def stop(self, reason: str) -> None:
        """End the search; the steps so far give its result."""
        self._reason = reason

    def result(self) -> Capacity:
        """Return the capacity that the steps so far give."""
        if self._estimated is None:
            rate = self.steps[-1].rate if self.steps else self.low
            on_time_rates = [step.rate for step in self.steps if step.late_share <= self._low_share]
            is_missed = bool(self.steps) and self.steps[-1].late_share > self._allowed
            interval = (0.0, rate) if is_missed else (max(on_time_rates, default=0.0), math.inf)
            reason = self._reason or "no step"
        else:
            rate, low, high = self._estimated
            interval = (low, high)
            is_wide = (high - low) / 2 > 1.001 * self.tolerance * rate
            reasons = self._note, self._reason or ("the steps were used up" if is_wide else "")
            reason = "; ".join(filter(None, reasons))
        return Capacity(rate, interval, self.confidence, self.objective, tuple(self.steps), reason)

    # -- estimation ---------------------------------------------------------------------------------------------

    def _bisect(self) -> tuple[float, float, float]:
        """Return the crossing by halving, and the rates below and above it that leave no doubt."""
        late = [step for step in self._valid_steps if step.late_share > self._low_share]
        surely_missed = [step.rate for step in late if self._is_missed(step)]
        unsure_rates = [step.rate for step in late if not self._is_missed(step)]
        crossing = min(surely_missed + unsure_rates)
        on_time_rate = max(
            (step.rate for step in self._valid_steps if step.late_share <= self._low_share and step.rate < crossing),
            default=self.low if self.low < crossing else crossing / CLIMB,
        )
        highest = max(unsure_rates, default=on_time_rate)
        missed = min((rate for rate in surely_missed if rate > highest), default=highest * CLIMB)
        interval = self._pooled() if unsure_rates else (on_time_rate, missed)
        return math.sqrt(interval[0] * interval[1]), on_time_rate, missed

    def _pooled(self) -> tuple[float, float]:
        """Return the rates on both sides of the crossing, if the late share never falls as the rate rises.

        Neighboring rates where the share does fall are pooled (isotonic regression): a step that was late by chance
        counts less, the more requests were on time at higher rates.
        """
        pools: list[list[float]] = []  # late, sent, lowest and highest rate
        for step in sorted(self._valid_steps, key=lambda step: step.rate):
            pools.append([float(step.late.sum()), float(step.sent.sum()), step.rate, step.rate])
            while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
                late, sent, _, highest = pools.pop()
                pools[-1][0] += late
                pools[-1][1] += sent
                pools[-1][3] = highest
        on_time_rates = [highest for late, sent, _, highest in pools if late <= self._allowed * sent]
        missed = [lowest for late, sent, lowest, _ in pools if late > self._allowed * sent]
        first_missed = missed[0] if missed else on_time_rates[-1] * CLIMB
        return (on_time_rates[-1] if on_time_rates else first_missed / CLIMB), first_missed

    def _steps_nearby(self) -> list[Step]:
        """Return the steps close enough to the crossing for a line, without those that surely missed.

        They are chosen by rate, because the late share varies by chance. Where steps surely miss, the line has ended.
        """
        middle = self._bisect()[0] if self._estimated is None else self._estimated[0]
        return [
            step
            for step in self._valid_steps
            if abs(math.log(step.rate / middle)) <= _FIT_DISTANCE and not self._is_missed(step)
        ]

    def _is_confirmed(self, rate: float) -> bool:
        """Return whether a step at this rate or above kept the objective after the first step that missed it."""
        first = next(number for number, step in enumerate(self._valid_steps) if step.late_share > self._allowed)
        return any(step.rate >= rate and step.late_share <= self._allowed for step in self._valid_steps[first:])

    def _is_settled(self, rate: float) -> bool:
        """Return whether enough steps lie on both sides of a rate: a line is not extrapolated beyond the steps."""
        steps = self._steps_nearby()
        below = sum(step.rate < rate for step in steps)
        return min(below, len(steps) - below) >= _MIN_STEPS_PER_SIDE

    def _is_jump(self) -> bool:
        """Return whether no line can be fitted yet."""
        between = self._between()
        return len(between) < _LEAST_STEPS or max(between) < 1.005 * min(between)

    def _between(self) -> list[float]:
        """Return the rates near the estimate at which some requests were late and most were not."""
        return [step.rate for step in self._steps_nearby() if step.late_share > self._low_share]

    def _estimate(self) -> tuple[float, float, float]:
        if self._is_jump():
            return self._bisect()
        nearby = self._steps_nearby()
        x = np.log([step.rate for step in nearby])
        sums = np.array([[step.late.sum(), step.sent.sum()] for step in nearby], np.float64).T
        blocks = np.moveaxis(
            np.array([step.draw(self._rng) for step in nearby], np.float64), 0, 2
        )  # late, sent × draws
        steps = sums[:, np.newaxis] * self._rng.multinomial(len(nearby), np.full(len(nearby), 1 / len(nearby)), DRAWS)
        log_crossing, slope = map(float, self._crossing(x, *sums))
        drawn = [self._crossing(x, *counts) for counts in (blocks, steps)]
        deviations = [np.quantile(crossings, _DEVIATION_QUANTILES) for crossings, _ in drawn]
        error = float(max(high - low for low, high in deviations)) / 2
        middle = float(x.mean())
        late = sums[0] / (sums[1] * np.exp(slope * (x - middle)))  # late requests if all steps had the same rate
        spread_over = float(late.sum() ** 2 / (late @ late))  # Kish's effective number of steps
        half = student_quantile(0.5 + self.confidence / 2, max(2.0, spread_over - 2)) * error * _STOPPING
        self._slope = min(float(np.quantile(slopes, _DEVIATION_QUANTILES[0])) for _, slopes in drawn)
        log_rate = min(max(log_crossing, middle - _MAX_EXTRAPOLATION), middle + _MAX_EXTRAPOLATION)
        return (
            math.exp(log_rate),
            math.exp(min(log_crossing, log_rate) - half),
            math.exp(max(log_crossing, log_rate) + half),
        )

    def _crossing(self, x: Floats, late: Floats, sent: Floats) -> Any:
        """Return the logarithm of the rate at which the expected late share is the allowed one, and the slope.

        A Poisson regression with a logarithmic link, by Newton's method: unlike a line through the logarithms of the
        observed shares it gives no extra weight to steps that were late by chance.

        Args:
            x: logarithms of the rates of the steps.
            late: late requests of each step on the last axis; the other axes are those of the result.
            sent: all requests of each step.
        """
        middle = x.mean()
        distance = x - middle
        level = np.log((late.sum(axis=-1) + 0.5) / sent.sum(axis=-1))
        slope = np.full_like(level, _FIRST_SLOPE)
        for _ in range(_NEWTON_STEPS):
            fitted = sent * np.exp(np.minimum(level[..., np.newaxis] + slope[..., np.newaxis] * distance, 0.0))
            residuals = late - fitted
            first, second = residuals.sum(axis=-1), (residuals * distance).sum(axis=-1)
            a, b, c = fitted.sum(axis=-1), (fitted * distance).sum(axis=-1), (fitted * distance**2).sum(axis=-1)
            determinant = np.maximum(a * c - b * b, 1e-12)
            level = level + np.clip((c * first - b * second) / determinant, -1.0, 1.0)
            slope = np.clip(slope + (a * second - b * first) / determinant, _LEAST_SLOPE, _MOST_SLOPE)
        offset = (math.log(self._allowed) - level) / slope
        return middle + np.clip(offset, -_MAX_CROSSING, _MAX_CROSSING), slope
