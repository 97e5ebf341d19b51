"""Online estimate of batch durations by size.

*Design.* A duration is a *speed* that all sizes share, times the *relative cost* of the size, times noise. Costs lie on
a line over the size, plus a correction for each size, two an octave. The weight of a correction grows with the batches
of its size, so a size that was first measured at a slow moment is held by its neighbors. After each power of two there
is one more size, because a model that pads batches, to captured graphs or whole tiles, takes longer there at once. Each
batch moves the speed by a tenth of its residual (the log-ratio observed/predicted), or less if its size has not
settled. It moves the cost of its size by a share that falls with each visit. So the speed follows the device, and the
shape of the costs settles.

*Noise.* A residual counts for at most 2.5 standard deviations, so an outlier moves little. Three slower batches in a
row are not outliers, nor are two faster ones, because a device is never faster by accident. Then the speed jumps to the
nearest of them, or, if the size was hardly known, its cost does. A cost that was hardly known falls already at the
first faster batch. All gains are relative to the noise, so a device that repeats to the microsecond is followed as
precisely.

*After an outage.* After a jump to a slower speed, sixteen batches have to confirm it. Until then, a faster batch of a
hardly known size reverts the jump before its cost falls. In an outage there is time only for small batches. If they
then counted as cheap, large batches would still seem too slow to try after the outage. A size that has not run for 128
batches is hardly known again. It is forgotten if it would take longer than a larger size that has run since, as is a
size that only a prior knows.

*Above the seen sizes* the line continues. After a single size it is flat, so that larger batches are tried; for smaller
ones half of the cost counts as proportional. Above the largest size with two visits an estimate is a guess; ``trusted``
is that size.

*Invariants.* Costs are positive and, as published, nondecreasing (a batch can be padded to a larger one). Reading
changes nothing.

*Complexity.* O(1) per batch, and O(sizes) when the curve is published: after each of a size's first batches, then when
a prediction has moved by 0.02 % or a tenth of the noise.

*References.* Hampel, Ronchetti, Rousseeuw, Stahel (1986), Robust Statistics (bounded influence); Barlow et al. (1972),
Statistical Inference under Order Restrictions.
"""

import functools
import math
from bisect import insort

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_count, check_instance, check_whole
from streaminfer.batching.service_time._relative_costs_cy import STEEPEST, smoothed_costs
from streaminfer.batching.service_time.residual_quantile import ResidualQuantile
from streaminfer.batching.service_time.service_time import WORTH_GROWING, ServiceTime

__all__ = ["LatencyModel", "nearest_size", "size_steps"]

_SPEED_GAIN = 0.1
_VISITS_COUNTED = 20  # a size's own gain is at least the inverse of this
_SETTLED = 4  # visits after which a lasting residual moves the speed, not the cost of the size
_STALE_AFTER = 128  # batches
_CONFIRMED_BY = 16  # batches
_OUTLIER = 2.5  # standard deviations
_SMALLEST_OUTLIER = 0.02  # log-ratio
_SLOWER_IN_A_ROW, _FASTER_IN_A_ROW = 3, 2
_COST_TOLERANCE = 0.2  # log-ratio by which the costs of neighbors may be wrong
_FILL_UP = 0.7  # power of padding costs: twice the size, with the allowance, costs less than half the speed does
_LITTLE_GAIN = 0.35  # set-up over cost per row: the largest batch has less than 1.35 times the throughput of one row
_SMALL = 2
_PRIOR_SIZES = 4096
_PUBLISH_FROM = 2e-4  # log-ratio
_PER_OCTAVE = 2


class LatencyModel:
    """Speed of a device, relative costs of its batch sizes, and their noise.

    Not thread-safe: it belongs to one event loop, like the batcher that feeds it.

    Args:
        prior: the expected durations, which batches correct. ``None``: unknown.

    Attributes:
        residuals: scatter of the residuals.
        observations: number of batches observed.
        version: number that changes with the curve.
        gains_up_to: the size above which a batch twice as large brings less than 3.5 % of throughput, if the line over
            all sizes expects little from batching. Otherwise, or until two sizes have settled, a small one among them,
            infinite.

    Raises:
        TypeError: ``prior`` is not a :class:`ServiceTime`.
    """

    def __init__(self, *, prior: ServiceTime | None = None) -> None:
        check_instance("prior", prior, ServiceTime | None, "a ServiceTime or None")
        self.residuals = ResidualQuantile()
        self.observations = 0
        self.version = 0
        self.gains_up_to = math.inf
        self._prior = prior
        self._sizes: list[int] = []
        self._costs: dict[int, float] = {}  # logarithms, relative to the speed
        self._visits: dict[int, int] = {}
        self._speed = 0.0  # logarithm of nanoseconds
        self._speed_before = math.inf  # speed before jumps to a slower one that are not confirmed yet
        self._confirmed = 0  # number of batches as expected since the last such jump
        self._last_observed: dict[int, int] = {}  # number of observations at a size's last batch
        self._streak: list[float] = []  # residuals of the last batches, all outliers to the same side
        self._published_speed = 0.0
        self._costs_moved = 0.0  # sum of changes since the curve was published
        self._curve: ServiceTime | None = None
        if prior is not None:
            for size in _sizes_up_to(_PRIOR_SIZES):
                self._add(size, math.log(prior.at(size) * 1e9), _SETTLED)
            self._publish()

    @property
    def known(self) -> bool:
        """Whether predictions are possible: there was a prior or a first batch."""
        return bool(self._sizes)

    @property
    def in_doubt(self) -> bool:
        """Whether the last batch was an outlier, or the first sign of a change."""
        return bool(self._streak)

    @property
    def trusted(self) -> int:
        """Largest size whose estimate is not a guess: seen twice, or given by a prior; 0 if there is none."""
        if self._prior is not None:
            return _PRIOR_SIZES
        return max((size for size in self._sizes if self._visits[size] > 1), default=0)

    def observe(self, size: int, duration_ns: int, now_ns: int) -> None:
        """Learn from a batch.

        Args:
            size: number of its rows, ≥ 1.
            duration_ns: how long it took, ≥ 0.
            now_ns: when it ended, monotonic.

        Raises:
            TypeError, ValueError: an argument is not such a whole number.
        """
        size = check_count("size", size)
        duration_ns = check_count("duration_ns", duration_ns, at_least=0)
        check_whole("now_ns", now_ns, "a whole number ≥ 0")
        self.observations += 1
        near = nearest_size(size)
        if self._is_stale(near):
            self._visits[near] = min(self._visits[near], _SETTLED - 1)
        self._last_observed[near] = self.observations
        log_ns = math.log(max(duration_ns, 1))
        if not self._sizes:
            self._speed = log_ns
            self._add(near, 0.0, 1)
            self._publish()
            return
        residual = log_ns - math.log(self.predict_ns(size))
        if self._visits.get(near, 0) < _SETTLED:
            residual -= self._recover(residual)
        if near not in self._costs:
            expected = math.log(self.curve().at(near))
            self._add(near, expected, 0)
            if self._is_plausible(near, expected + residual):
                self._costs[near] = expected + residual
                self._visits[near] = 1
                self._publish()
                return
        # a size that costs more or less than its neighbors is not an outlier once its own batches show it
        own = residual + math.log(self.curve().at(near)) - self._costs[near]
        self._learn(near, residual, own if abs(own) < abs(residual) else residual)
        settling = self._visits[near] < _VISITS_COUNTED
        moved = abs(self._speed - self._published_speed) + self._costs_moved
        if settling or moved > max(0.1 * self.residuals.deviation, _PUBLISH_FROM):
            self._publish()

    def batches_since(self, size: int) -> float:
        """Return how many batches were observed since one of about this size; infinite if there were not two."""
        near = nearest_size(size)
        return math.inf if self._visits.get(near, 0) < 2 else self.observations - self._last_observed.get(near, 0)

    def until_settled(self, size: int) -> int:
        """Return how many batches of about a size are needed until the last four or more determine its cost."""
        return max(_SETTLED - self._visits.get(nearest_size(size), 0), 0)

    def predict_ns(self, size: int) -> float:
        """Return the median duration of a batch of ``size`` rows, in nanoseconds.

        Raises:
            RuntimeError: no duration is known yet.
        """
        return self.curve().at(size) * math.exp(self._published_speed)

    def curve(self) -> ServiceTime:
        """Return the relative costs; multiplied by ``scale_ns()`` they are durations.

        Raises:
            RuntimeError: no duration is known yet.
        """
        if self._curve is None:
            raise RuntimeError("no service time is known yet: no batch was observed and none was given")
        return self._curve

    def scale_ns(self) -> float:
        """Return the nanoseconds of a relative cost of 1."""
        return math.exp(self._published_speed)

    def knows(self, size: int) -> bool:
        """Return whether a batch of about a size was observed, or is given by a prior."""
        return nearest_size(size) in self._costs

    def seen(self) -> dict[int, tuple[float, int]]:
        """Return the nanoseconds that each size's own batches suggest, and their number, by size."""
        return {size: (math.exp(self._speed + self._costs[size]), self._visits[size]) for size in self._sizes}

    @property
    def _limit(self) -> float:
        """Residual from which a batch is an outlier."""
        return max(_OUTLIER * self.residuals.deviation, _SMALLEST_OUTLIER)

    def _learn(self, near: int, residual: float, own_residual: float) -> None:
        limit = self._limit
        is_outlier = not -limit <= own_residual <= limit
        if self._streak and not (is_outlier and (self._streak[-1] > 0) == (own_residual > 0)):
            for outlier in self._streak:
                self.residuals.add(outlier)
            self._streak.clear()
        if not is_outlier:
            if self._visits[near] >= _SETTLED:  # earlier residuals would include the error of an unknown cost
                self.residuals.add(own_residual)
                self._confirmed += 1
                if self._confirmed == _CONFIRMED_BY:
                    self._speed_before = math.inf
            self._correct(near, own_residual, own_residual)
            return
        if own_residual < 0.0 and self._relearn(near, residual):
            self._publish()
            return
        self._streak.append(own_residual)
        if len(self._streak) < (_SLOWER_IN_A_ROW if own_residual > 0 else _FASTER_IN_A_ROW):
            bounded = math.copysign(limit, own_residual)
            is_unsettled = self._visits[near] < _SETTLED and self._is_plausible(near, self._costs[near] + own_residual)
            self._correct(near, bounded, own_residual if is_unsettled else bounded)
            return
        jump = min(self._streak, key=abs)
        self._streak.clear()
        if not self._relearn(near, residual):
            if jump > 0.0:
                self._speed_before = min(self._speed_before, self._speed)
                self._confirmed = 0
            self._speed += jump
        self._publish()

    def _is_stale(self, size: int) -> bool:
        """Return whether a size has not run for so long that its cost may be out of date."""
        return size in self._costs and self.observations - self._last_observed.get(size, 0) > _STALE_AFTER

    def _recover(self, residual: float) -> float:
        """Revert jumps to a slower speed if a hardly known size is faster; return the change of the speed."""
        if residual >= -self._limit or self._speed <= self._speed_before:
            return 0.0
        change = max(residual, self._speed_before - self._speed)
        self._speed += change
        self._publish()
        return change

    def _relearn(self, size: int, residual: float) -> bool:
        """Set the cost of a hardly known size from its last batch, if its neighbors allow that."""
        cost = math.log(self.curve().at(size)) + residual
        if self._visits[size] >= _SETTLED or len(self._sizes) == 1 or not self._is_plausible(size, cost):
            return False
        self._costs[size] = cost
        self._visits[size] = 1
        return True

    def _is_plausible(self, size: int, cost: float) -> bool:
        """Return whether the neighbors of a size allow a cost (a logarithm): nondecreasing, and not too steep."""
        for other in self._sizes:
            if other == size or self._visits[other] < _SETTLED or self._is_stale(other):
                continue
            sign = 1.0 if other > size else -1.0
            rise = sign * (self._costs[other] - cost)
            below, above = sorted((size, other))
            padded = 1 << (above - 1).bit_length()  # a power of two to which a model may pad the batch
            max_rise = max(STEEPEST * math.log(above / below), _FILL_UP * math.log(padded / below))
            if not -_COST_TOLERANCE <= rise <= max_rise + _COST_TOLERANCE:
                return False
        return True

    def _correct(self, near: int, of_speed: float, of_cost: float) -> None:
        """Correct the speed by a part of a residual, and the cost of a size by a part that falls with its visits."""
        visits = min(self._visits[near] + 1, _VISITS_COUNTED)
        self._visits[near] = visits
        step = (1.0 - _SPEED_GAIN) * of_cost / visits
        gain = _SPEED_GAIN * min(visits / _SETTLED, 1.0)
        self._speed += gain * of_speed
        self._costs[near] += step
        self._costs_moved += abs(step)

    def _add(self, size: int, cost: float, visits: int) -> None:
        insort(self._sizes, size)
        self._costs[size] = cost
        self._visits[size] = visits

    def _forget_refuted(self) -> None:
        """Forget sizes, stale or only from a prior, that would take longer than a larger size that has run since."""
        least = math.inf
        for size in self._sizes[::-1]:
            cost = self._costs[size]
            if size in self._last_observed and not self._is_stale(size):
                least = min(least, cost)
            elif cost > least + self._limit:
                self._sizes.remove(size)
                del self._costs[size], self._visits[size]

    def _publish(self) -> None:
        self._forget_refuted()
        sizes = self._sizes
        visits = [max(self._visits[size], 1) for size in sizes]
        logarithms = [self._costs[size] for size in sizes]
        costs, setup, per_row = smoothed_costs(sizes, logarithms, visits, self.residuals.deviation)
        settled = [size for size, count in zip(sizes, visits, strict=True) if count >= _SETTLED]
        # without a small size the set-up of the line would be a guess
        is_guess = len(settled) < 2 or settled[0] > _SMALL
        gains = is_guess or setup > _LITTLE_GAIN * per_row
        # the size at which size ** 0.95 / (setup + per_row * size) is largest
        self.gains_up_to = math.inf if gains else setup / per_row * WORTH_GROWING / (1.0 - WORTH_GROWING)
        if len(sizes) == 1 and sizes[0] > 1:
            sizes, costs = [1, *sizes], [costs[0] * (0.5 + 0.5 / sizes[0]), *costs]
        self._curve = ServiceTime(tuple(sizes), tuple(costs), per_row)
        self._published_speed = self._speed
        self._costs_moved = 0.0
        self.version += 1


def _sizes_up_to(largest: int) -> list[int]:
    steps = round(math.log2(largest)) * _PER_OCTAVE
    return sorted({1, 2, 3, *(round(2 ** (step / _PER_OCTAVE)) for step in range(2 * _PER_OCTAVE, steps + 1))})


def nearest_size(size: int) -> int:
    """Return the size that represents ``size``: itself to 4, then the nearest of two an octave, or 1 above 2 ** k."""
    if size <= 4:
        return size
    nearest = round(2 ** (round(math.log2(size) * _PER_OCTAVE) / _PER_OCTAVE))
    return nearest + 1 if size > nearest and nearest & (nearest - 1) == 0 else nearest


@functools.lru_cache
def size_steps(largest: int) -> NDArray[np.int64]:
    """Return a number for each size up to the largest, equal for sizes with the same `nearest_size`; entry 0 is 0."""
    nearest = np.array([nearest_size(max(size, 1)) for size in range(largest + 1)])
    steps: NDArray[np.int64] = np.unique(nearest, return_inverse=True)[1].astype(np.int64)
    steps.flags.writeable = False
    return steps
