"""How long a batch takes as a function of its size: learned from live batches.

*Idea.* The logarithm of a time is a *level*, how fast the device is at this moment, plus a *shape*, what a size costs
relative to the others, plus noise. Each size that was seen keeps an estimate of its shape with a variance; level and
shape share every surprise (observed less predicted) in proportion to their variances, which is a Kalman filter whose
covariances are left out. The level may wander by 10 % of the noise per batch and the shape by half of that, so the
level follows within some ten batches what is small beside the noise, and the shape is learned slowly once it is known.
All gains are relative to the noise: a device that repeats to the microsecond is followed as finely as that.

*What is not noise.* A surprise past 2.5 standard deviations moves nothing. If the next batch surprises to the same
side, the device has changed: the level jumps, up or down alike, by their mean or, if they disagree, by the smaller. If
only the same *size* surprises again at its next visit, it was learned wrongly and jumps alone. Otherwise it was an
outlier. A size not seen so far may surprise as far as it is uncertain, within what its neighbours allow (a monotone
time; not much steeper than proportional); past that, one between known sizes speaks for the level and one outside them
for the shape. A single outlier can therefore be believed only outside the known sizes, and the next visit undoes it.
The first observation is on probation, since a first call compiles, allocates and loads: while fewer than three were
believed, one that is clearly faster than they allow starts again, and the first goes when two others, without it, say
half its time or less.

*Shape.* Pool-adjacent-violators makes the sizes' estimates nondecreasing, with straight lines between them and the
local slope outside (:mod:`streaminfer.batching.monotone_fit`): no affine time is assumed. A size counts for less the
longer it was not seen, and one seen once or long ago goes when a fresher one contradicts it, since a time is monotone.
From a single size m it is ``t(n) = t(m)·(0.5 + 0.5·n/m)``: larger batches look worth trying and are tried in steps
that a deadline survives. Sizes past 64 share an estimate with their neighbours within 3 %, so that each is seen often
enough.

*Band.* The upper estimate is the 95 % quantile of the last 64 log-ratios observed/central, each taken before it was
learned (:mod:`streaminfer.batching.noise`). Ratios of sizes that were hardly known count by what they tell of the
noise. The band tells of a device's scatter, not of the shape at sizes that were never seen.

*Invariants.* Tables are positive, nondecreasing in the size, upper ≥ central; a lookup changes nothing, and equal
observations give equal tables whenever they are asked for. They are published again, with a new ``version``, only when
something moved by more than 0.02 % or a tenth of the noise: between, lookups cost nothing.

*Cost.* O(1) per observation, and amortised one fit, O(k) over k ≤ 64 + 32·log2(largest/64) known sizes, per new
version.

*Sources.* Kalman (1960), A New Approach to Linear Filtering and Prediction Problems; Hampel, Ronchetti, Rousseeuw,
Stahel (1986), Robust Statistics (rejection past a multiple of a quantile-based scale); Barlow et al. (1972),
Statistical Inference under Order Restrictions.
"""

import math
from bisect import bisect_left, insort
from typing import NamedTuple

from streaminfer._validation import check_count, check_instance
from streaminfer.batching.monotone_fit import monotone_curve
from streaminfer.batching.noise import ASSUMED_NOISE, RecentNoise
from streaminfer.batching.service_time import ServiceTime

__all__ = ["BESIDE", "BEYOND", "LevelAndShape"]

_OUTLIER = 2.5  # standard deviations
_LEVEL_WANDER = 0.1  # standard deviations per batch
_SHAPE_WANDER = 0.05  # standard deviations per visit of a size
_FORGETTING = 9e-6  # of a size's variance, per batch of other sizes: to 3 % after a hundred
_OLD = 50  # batches of other sizes, after which neighbours that contradict a size are believed
_IDLE_WANDER = 0.005  # of the level, per square root of a second
_EXACT_TO = 64
_PRIOR_DEVIATION = 0.1
_STEP = 0.2  # what a next size may cost at once, as a log-ratio
_STEEPEST = 1.2  # power of the size that no batch's time exceeds over a wide range
BESIDE, BEYOND, _BETWEEN = 0.05, 0.35, 0.25  # standard deviation of a first visit: least, per log-size, per log-time
_LARGER, _SMALLER = -1, 0  # keys of what is doubted outside the known sizes
_UNFIT = math.log(2.0)
_HEARSAY, _CONVINCING = 0.6, 1.5  # one or two of sizes never seen say nothing of the speed, three do


class _Size:
    """What is known of the relative cost of one size.

    Attributes:
        log_time: its own estimate, relative to the level.
        variance: of that estimate.
        visits: how many observations it has taken in.
        seen: which observation, counted, it was seen in last.
        fitted: the monotone curve here, relative to the level.
        fitted_from: ``log_time`` when the curve was fitted.
    """

    __slots__ = ("fitted", "fitted_from", "log_time", "seen", "variance", "visits")

    def __init__(self, log_time: float, variance: float, seen: int) -> None:
        self.log_time = self.fitted = self.fitted_from = log_time
        self.variance = variance
        self.visits = 0
        self.seen = seen

    def variance_now(self, observations: int) -> float:
        """The variance, grown with the observations since the last visit."""
        return self.variance + _FORGETTING * (observations - self.seen)


class _Surprise(NamedTuple):
    """An observation that no noise explains.

    Attributes:
        place: the size that stands for its size.
        excess: the log-ratio to what its size was expected to cost.
        published: the log-ratio to the curve.
        told: how much it tells of the device's speed.
    """

    place: int
    excess: float
    published: float
    told: float


class LevelAndShape:
    """What is known of a device: its level, the shape of its sizes, the noise, and what is in doubt.

    Not thread-safe: it belongs to one event loop, as the batcher that feeds it.

    Args:
        prior: what to expect at first; its shape holds until batches tell otherwise.

    Raises:
        TypeError: ``prior`` is not a :class:`ServiceTime`.
    """

    def __init__(self, *, prior: ServiceTime | None = None) -> None:
        check_instance("prior", prior, lambda it: it is None or isinstance(it, ServiceTime), "a ServiceTime or None")
        self._prior = prior
        self._observations = 0
        self._version = 0
        self._forget()

    def _forget(self) -> None:
        self._sizes: list[int] = []
        self._known: dict[int, _Size] = {}
        self._noise = RecentNoise()
        self._accepted = 0
        self._first_place = 0
        self._level = math.log(1e9)
        self._level_variance = _PRIOR_DEVIATION**2 if self._prior is not None else 0.0
        self._last_ns: int | None = None
        self._surprises: list[_Surprise] = []
        self._jumped: tuple[float, set[int]] = 0.0, set()
        self._doubts: dict[int, float] = {}
        self._curve = self._prior
        self._curve_is_old = False
        self._published_level = self._level
        self._published_upper = self._noise.upper

    @property
    def version(self) -> int:
        """Changes whenever the tables do."""
        return self._version

    @property
    def observations(self) -> int:
        """How many batches were observed, outliers included."""
        return self._observations

    @property
    def known(self) -> bool:
        """Whether there is anything to expect: a prior, or a first observation."""
        return self._prior is not None or bool(self._sizes)

    @property
    def in_doubt(self) -> bool:
        """Whether the last batch was a surprise: an outlier, or the first sign of a change."""
        return bool(self._surprises)

    def batches_since(self, size: int) -> float:
        """How many batches were observed since one of about this size, within a factor of the root of two.

        Returns:
            Infinite where there was none.
        """
        seen = [self._known[near].seen for near in self._sizes if 0.7 * size <= near <= 1.42 * size]
        return self._observations - max(seen) if seen else math.inf

    def observe(self, size: int, duration_ns: int, now_ns: int) -> None:
        """Takes in one successful batch.

        Args:
            size: its items, ≥ 1.
            duration_ns: what it took, ≥ 0.
            now_ns: the present instant, monotonic; after idle time the level is less certain.

        Raises:
            TypeError, ValueError: not such whole numbers.
        """
        if type(size) is not int or size < 1:
            size = check_count("size", size)
        if type(duration_ns) is not int or duration_ns < 0:
            duration_ns = check_count("duration_ns", duration_ns, at_least=0)
        if type(now_ns) is not int:
            now_ns = check_count("now_ns", now_ns, at_least=0)
        log_ns = math.log(duration_ns or 1)
        curve = self._fit()
        self._observations += 1
        if curve is None:
            self._start(size, log_ns, now_ns)
            return
        self._wander(now_ns)
        place = _place(size)
        known = self._known.get(place)
        if known is not None:
            at_size = known.fitted if size == place else math.log(curve.at(size))
            published = log_ns - self._level - at_size
            surprise = published + known.fitted - known.log_time
            known.seen = self._observations
            limit = self._limit(known.variance)
            excess = surprise if surprise > limit or surprise < -limit else 0.0
            variance, doubted = known.variance, place
        else:
            published = surprise = log_ns - self._level - math.log(curve.at(size))
            low, high, variance, doubted = self._plausible(place, math.log(curve.at(place)))
            excess = surprise if surprise > high or surprise < low else 0.0
        if excess:
            self._surprised(place, size, excess, doubted, published, log_ns, now_ns)
        else:
            if self._surprises:
                self._reject()
            if self._doubts:
                self._doubts.pop(doubted, None)
            if known is None:
                known = self._add(place, math.log(curve.at(place)), variance)
            self._learn(place, known, surprise, published)
        self._publish()

    def _start(self, size: int, log_ns: float, now_ns: int) -> None:
        """The first observation: all that is known."""
        self._first_place = place = _place(size)
        self._level = log_ns + math.log(0.5 + 0.5 * place / size)  # as the curve from one size does
        self._last_ns = now_ns
        self._add(place, 0.0, ASSUMED_NOISE**2).visits = 1
        self._accepted = 1
        self._publish()

    def _start_again(self, size: int, log_ns: float, now_ns: int) -> None:
        """The first observation was too slow: this one takes its place, and what else was seen stays if it fits."""
        others = [(place, self._level + known.log_time) for place, known in self._known.items()]
        first = self._first_place
        self._forget()
        self._start(size, log_ns, now_ns)
        for place, log_time in others:
            rise, reach = log_time - log_ns, math.log(place / size)
            if reach < 0:
                rise, reach = -rise, -reach
            if place not in (first, self._first_place) and 0.0 <= rise <= _STEP + _STEEPEST * reach:
                self._add(place, log_time - self._level, ASSUMED_NOISE**2).visits = 1
                self._accepted += 1

    def _wander(self, now_ns: int) -> None:
        idle_s = 0.0 if self._last_ns is None else max(now_ns - self._last_ns, 0) / 1e9
        self._last_ns = now_ns
        wandered = (_LEVEL_WANDER * self._noise.deviation) ** 2 + _IDLE_WANDER**2 * idle_s
        if self._level_variance < _PRIOR_DEVIATION**2:
            self._level_variance = min(self._level_variance + wandered, _PRIOR_DEVIATION**2)

    def _limit(self, variance: float) -> float:
        """The largest surprise that is no outlier, at a size whose estimate has this variance."""
        return _OUTLIER * math.sqrt(self._level_variance + variance + self._noise.deviation**2)

    def _plausible(self, place: int, expected: float) -> tuple[float, float, float, int]:
        """What to believe at once of a size not seen so far.

        Returns:
            The least and the largest surprise that is no outlier, the variance before the first visit, and under which
            key an outlier is kept in mind.
        """
        sizes, known = self._sizes, self._known
        if not sizes:  # nothing but the prior
            limit = self._limit(_PRIOR_DEVIATION**2)
            return -limit, limit, _PRIOR_DEVIATION**2, place
        after = bisect_left(sizes, place)
        below, above = known[sizes[max(after - 1, 0)]], known[sizes[min(after, len(sizes) - 1)]]
        lowest = below.fitted - expected - self._limit(below.variance)
        highest = above.fitted - expected + self._limit(above.variance)
        if 0 < after < len(sizes):  # a monotone time lies between its neighbours
            key, deviation = place, 0.4 * BESIDE + _BETWEEN * (above.fitted - below.fitted)
        else:
            reach = abs(math.log(place / sizes[after and -1]))
            deviation = _PRIOR_DEVIATION if self._prior is not None else BESIDE + BEYOND * reach
            if after:
                key, highest = _LARGER, highest + _STEP + _STEEPEST * reach
            else:
                key, lowest = _SMALLER, lowest - _STEP - _STEEPEST * reach
        limit = self._limit(deviation**2)
        return max(lowest, -limit), min(highest, limit), deviation**2, key

    def _add(self, place: int, expected: float, variance: float) -> _Size:
        self._known[place] = known = _Size(expected, variance, self._observations)
        insort(self._sizes, place)
        self._curve_is_old = True
        return known

    def _learn(self, place: int, known: _Size, surprise: float, published: float) -> None:
        """Shares a surprise between level, shape and noise."""
        noise = self._noise
        variance = noise.deviation**2
        total = self._level_variance + known.variance + variance
        gain = surprise / total
        self._level += self._level_variance * gain
        self._level_variance *= 1.0 - self._level_variance / total
        known.log_time += known.variance * gain
        hardly_known = known.variance
        known.variance *= 1.0 - known.variance / total
        known.variance += (_SHAPE_WANDER * noise.deviation) ** 2
        known.visits += 1
        self._accepted += 1
        if known.visits == 1:
            if surprise > _OUTLIER * noise.deviation:
                known.variance += (0.5 * surprise) ** 2  # slower than expected: perhaps this size's first call
            self._drop_contradicted(place)
        if self._accepted == 3:
            self._question_first()
        if abs(known.log_time - known.fitted_from) > max(0.0002, 0.1 * noise.deviation):
            self._curve_is_old = True
        misfit = abs(published - surprise) > _UNFIT / 4  # the curve cannot follow this size's estimate
        if misfit and known.visits > 2:
            self._drop_outdated(place, known)
        if hardly_known <= 3.0 * variance:  # otherwise the surprise was about the size more than noise
            noise.add(surprise if misfit else published)

    def _surprised(
        self, place: int, size: int, excess: float, doubted: int, published: float, log_ns: float, now_ns: int
    ) -> None:
        """A batch that fits neither noise nor what its size may plausibly cost."""
        if excess < 0 and self._accepted < 3 and self._prior is None:
            self._start_again(size, log_ns, now_ns)
            return
        surprises = self._surprises
        if doubted > 0:  # outside the known sizes it tells nothing of the device
            if surprises and (surprises[-1].excess > 0) != (excess > 0):
                self._reject()
            told = 1.0 if place in self._known or not self._sizes else _HEARSAY
            surprises.append(_Surprise(place, excess, published, told))
            if sum(surprise.told for surprise in surprises) >= _CONVINCING:
                self._jump(excess)
                return
        earlier = self._doubts.pop(doubted, 0.0)
        if earlier * excess > 0:
            step = min(earlier, excess, key=abs)
            known = self._known.get(place) or self._add(place, math.log(self._published_curve().at(place)), 0.0)
            known.log_time += step
            known.variance = (0.25 * step) ** 2 + self._noise.deviation**2
            known.visits += 1
            known.seen = self._observations
            self._curve_is_old = True
            surprises.clear()
        else:
            self._doubts[doubted] = excess

    def _jump(self, excess: float) -> None:
        """The device has changed its speed: all that surprised in a row say so, the last one by ``excess``."""
        steps = [surprise.excess for surprise in self._surprises]
        step = min(steps, key=abs)
        if max(steps) - min(steps) <= 2 * _OUTLIER * self._noise.deviation:
            step = sum(steps) / len(steps)  # they agree; otherwise one of them may be an outlier besides
        places = {surprise.place for surprise in self._surprises}
        self._level += step
        self._level_variance += (0.1 * step) ** 2
        self._noise.add(excess - step)
        before, witnesses = self._jumped
        if before * step < 0:  # back again: so say others, and perhaps only the first witnesses were learned wrongly
            for place in witnesses - places:
                if place in self._known:
                    self._known[place].variance += (0.5 * before) ** 2
        self._jumped = step, places
        self._surprises.clear()
        self._doubts.clear()

    def _reject(self) -> None:
        """What surprised was an outlier; it still belongs to the noise."""
        for surprise in self._surprises:
            self._noise.add(surprise.published)
        self._surprises.clear()

    def _drop_contradicted(self, place: int) -> None:
        """Forgets the next larger size where it was seen once and costs more than any device's would."""
        after = bisect_left(self._sizes, place) + 1
        if after == len(self._sizes) or self._prior is not None:
            return
        above = self._known[self._sizes[after]]
        steepest = _UNFIT + _STEP + _STEEPEST * math.log(self._sizes[after] / place)
        if above.visits == 1 and above.log_time - self._known[place].log_time > steepest:
            del self._known[self._sizes[after]], self._sizes[after]

    def _drop_outdated(self, place: int, known: _Size) -> None:
        """Forgets sizes seen once or long ago that stand against this one, which was just seen: a time is monotone."""
        for size in list(self._sizes):
            other = self._known[size]
            against = other.log_time - known.log_time if size < place else known.log_time - other.log_time
            if (
                against > _UNFIT / 2 + _OUTLIER * math.sqrt(known.variance + other.variance)
                and other.seen < self._observations
                and (other.visits == 1 or other.seen < self._observations - _OLD)
            ):
                self._sizes.remove(size)
                del self._known[size]
                self._curve_is_old = True

    def _question_first(self) -> None:
        """Forgets the first observation where the next two, without it, say that it was too slow."""
        first = self._known.get(self._first_place)
        if first is None or first.visits > 1 or len(self._sizes) == 1 or self._prior is not None:
            return
        others = [size for size in self._sizes if size != self._first_place]
        known = [self._known[size] for size in others]
        curve, _ = monotone_curve(others, [it.log_time for it in known], [it.variance for it in known], None)
        if first.log_time - math.log(curve.at(self._first_place)) > _UNFIT:
            self._sizes = others
            del self._known[self._first_place]
            self._curve_is_old = True

    def _fit(self) -> ServiceTime | None:
        """The monotone curve, relative to the level."""
        if self._curve_is_old:
            known = [self._known[size] for size in self._sizes]
            log_times = [size.log_time for size in known]
            variances = [size.variance_now(self._observations) for size in known]
            self._curve, fitted = monotone_curve(self._sizes, log_times, variances, self._prior)
            for size, log_time in zip(known, fitted, strict=True):
                size.fitted = log_time
                size.fitted_from = size.log_time
            self._curve_is_old = False
        return self._curve

    def _publish(self) -> None:
        tolerance = max(0.0002, 0.1 * self._noise.deviation)
        if (
            self._curve_is_old
            or abs(self._level - self._published_level) > tolerance
            or abs(self._noise.upper - self._published_upper) > tolerance
        ):
            self._version += 1
            self._published_level = self._level
            self._published_upper = self._noise.upper

    def _published_curve(self) -> ServiceTime:
        curve = self._fit()
        if curve is None:
            raise RuntimeError("no service time is known: no batch was observed yet and no prior was given")
        return curve


def _place(size: int) -> int:
    """The size that stands for this one: itself up to 64, then the middle of a 32nd of an octave."""
    if size <= _EXACT_TO:
        return size
    width = 1 << (size.bit_length() - 6)
    return size - size % width + width // 2
