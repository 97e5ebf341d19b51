"""Arrival processes for simulations, from smooth to bursty, and the replay of a recorded trace.

*Poisson*: many independent callers. *Gamma*: the same rate in clumps, with gaps of a chosen coefficient of variation.
*On-off* and *bursts*: a rate that switches between two levels after exponential times, so that queues build up and
drain. *Cameras*: a few strictly periodic sources whose frames are delayed a little on the way; their phases decide
whether they collide.

Each function returns seconds, ascending, float64. The result depends only on the arguments: the same seed gives the
same arrivals on every machine. Complexity: O(n); O(n log n) for cameras, whose frames are merged.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import check_count, check_duration, check_number, expected

__all__ = [
    "arrivals_in_ns",
    "ascending",
    "bursts",
    "cameras",
    "check_cv",
    "check_size",
    "from_zero",
    "gamma",
    "on_off",
    "poisson",
    "priorities_of",
    "replay",
]

_LATEST_S = 1e9
_MOST_ARRIVALS = 10**8
_MOST_SWITCHES = 10**7
_LEAST_CV = 1e-6
_MOST_CV = 1e6
_PRIORITIES = np.iinfo(np.int32)


def poisson(rate: float, n: int, seed: int) -> NDArray[np.float64]:
    """Return arrivals that are independent of each other.

    Args:
        rate: mean arrivals per second.
        n: number of arrivals.
        seed: seed of the random stream.

    Returns:
        Shape (n,), seconds, ascending.
    """
    rng = _stream(seed)
    return np.cumsum(rng.exponential(1 / _positive("rate", rate), _count(n)))


def gamma(rate: float, n: int, seed: int, *, cv: float = 4.0) -> NDArray[np.float64]:
    """Return arrivals in clumps, with gaps from a gamma distribution.

    Args:
        rate: mean arrivals per second.
        n: number of arrivals.
        seed: seed of the random stream.
        cv: coefficient of variation of the gaps: standard deviation over mean. 1 is Poisson, above 1 is burstier.

    Returns:
        Shape (n,), seconds, ascending.
    """
    rng = _stream(seed)
    variance = check_cv("cv", cv) ** 2
    return np.cumsum(rng.gamma(1 / variance, variance / _positive("rate", rate), _count(n)))


def on_off(
    rate: float,
    n: int,
    seed: int,
    *,
    on_s: float = 0.05,
    off_s: float = 0.2,
    on_times: float = 3.0,
    off_times: float = 0.5,
) -> NDArray[np.float64]:
    """Return Poisson arrivals at a rate that switches between two levels; by default `rate` is the mean of both.

    Args:
        rate: arrivals per second, of which the levels are multiples.
        n: number of arrivals.
        seed: seed of the random stream.
        on_s: mean duration of the high level, exponentially distributed.
        off_s: mean duration of the low level, with which the process begins.
        on_times: the high level as a multiple of ``rate``.
        off_times: the low level as a multiple of ``rate``.

    Returns:
        Shape (n,), seconds, ascending.
    """
    rng = _stream(seed)
    n = _count(n)
    rate = _positive("rate", rate)
    high_rate, low_rate = _positive("on_times", on_times) * rate, _positive("off_times", off_times) * rate
    on_s, off_s = check_duration("on_s", on_s, positive=True), check_duration("off_s", off_s, positive=True)
    if 2 * n > _MOST_SWITCHES * (low_rate * off_s + high_rate * on_s):
        expectation = f"periods so long that {n:,} arrivals have at most {_MOST_SWITCHES:,} switches"
        raise ValueError(expected("on_s + off_s", expectation, off_s + on_s))
    arrivals: list[float] = []
    now_s, is_on = 0.0, False
    while len(arrivals) < n:
        end_s = now_s + rng.exponential(on_s if is_on else off_s)
        gap_s = 1 / (high_rate if is_on else low_rate)
        while len(arrivals) < n and (now_s := now_s + rng.exponential(gap_s)) <= end_s:
            arrivals.append(now_s)
        now_s, is_on = end_s, not is_on  # the gap that crossed the switch is dropped: exponential gaps have no memory
    return np.array(arrivals, dtype=np.float64)


def bursts(
    rate: float, n: int, seed: int, *, on_s: float = 0.05, off_s: float = 0.45, times: float = 10.0
) -> NDArray[np.float64]:
    """Return quiet arrivals with bursts of many times the quiet rate; `rate` is the mean of both.

    Args:
        rate: mean arrivals per second.
        n: number of arrivals.
        seed: seed of the random stream.
        on_s: mean duration of a burst, exponentially distributed.
        off_s: mean duration of the quiet periods, with which the process begins.
        times: the rate in a burst as a multiple of the quiet rate.

    Returns:
        Shape (n,), seconds, ascending.
    """
    on_s, off_s = check_duration("on_s", on_s, positive=True), check_duration("off_s", off_s, positive=True)
    quiet_rate = _positive("rate", rate) / ((on_s * _positive("times", times) + off_s) / (on_s + off_s))
    return on_off(quiet_rate, n, seed, on_s=on_s, off_s=off_s, on_times=times, off_times=1.0)


def cameras(fps: float, cameras: int, duration_s: float, seed: int, *, jitter_s: float) -> NDArray[np.float64]:
    """Return the frames of cameras with one rate and separate phases, each delayed a little on the way.

    Args:
        fps: frames per second of each camera.
        cameras: number of cameras.
        duration_s: how long they record; the last frames may arrive up to ``jitter_s`` later.
        seed: seed of the random stream.
        jitter_s: each frame's delay is uniform between 0 and this. If it exceeds the time between two frames, frames
            can overtake each other.

    Returns:
        Shape (n,), seconds, ascending; n is about ``fps * cameras * duration_s``.
    """
    rng = _stream(seed)
    period_s = 1 / _positive("fps", fps)
    duration_s = check_duration("duration_s", duration_s)
    phases = rng.uniform(0.0, period_s, check_count("cameras", cameras, at_most=_MOST_ARRIVALS))
    check_size("cameras * fps * duration_s", cameras * duration_s / period_s)
    frames = np.arange(np.ceil(duration_s / period_s)) * period_s
    recorded = (phases[:, np.newaxis] + frames).ravel()
    recorded = recorded[recorded < duration_s]
    return np.sort(recorded + check_duration("jitter_s", jitter_s) * rng.random(recorded.size))


def replay(trace_s: ArrayLike) -> NDArray[np.float64]:
    """Return the arrivals of a recorded trace, to simulate them again.

    Args:
        trace_s: shape (n,), the instants of the arrivals in seconds on any clock and in any order.

    Returns:
        Shape (n,), seconds, ascending from 0.
    """
    return from_zero("trace_s", trace_s)


def from_zero(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return the instants of an argument in ascending order, shifted to begin at 0.

    Raises:
        TypeError, ValueError: they are not finite numbers in one dimension.
    """
    instants = np.sort(_instants(name, values))
    return instants - instants[:1]


def check_size(name: str, arrivals: float) -> None:
    """Check how many arrivals an argument makes, before there is an array of them.

    Raises:
        ValueError: they are more than 100,000,000.
    """
    if arrivals > _MOST_ARRIVALS:
        raise ValueError(expected(name, f"at most {_MOST_ARRIVALS:,} arrivals", arrivals))


def arrivals_in_ns(arrivals_s: ArrayLike, name: str = "arrivals_s") -> NDArray[np.int64]:
    """Return arrivals as integer instants, the form in which decisions compare them.

    Args:
        arrivals_s: shape (n,), seconds ≥ 0, ascending (several may be equal), up to 1e9.
        name: name of the argument, for messages.

    Returns:
        Shape (n,), int64 nanoseconds, rounded to the nearest.

    Raises:
        TypeError: ``arrivals_s`` does not hold numbers.
        ValueError: it has another shape, or an arrival is not ascending, not finite, negative or too late.
    """
    instants = ascending(arrivals_s, name)
    if instants.size and (instants[0] < 0 or instants[-1] > _LATEST_S):
        outside = instants[0] if instants[0] < 0 else instants[-1]
        raise ValueError(expected(name, f"seconds from 0 to {_LATEST_S:g}", float(outside)))
    return np.rint(instants * 1e9).astype(np.int64)


def ascending(arrivals_s: ArrayLike, name: str = "arrivals_s") -> NDArray[np.float64]:
    """Return arrivals as float64, on any clock.

    Raises:
        TypeError: ``arrivals_s`` does not hold numbers.
        ValueError: it has another shape, or an arrival is not ascending or not finite.
    """
    instants = _instants(name, arrivals_s)
    back = instants[1:] < instants[:-1]
    if back.any():
        at = int(back.argmax()) + 1
        expectation = f"ascending seconds; element {at} lies before the one it follows"
        raise ValueError(expected(name, expectation, float(instants[at])))
    return instants


def priorities_of(values: ArrayLike | None, n: int) -> NDArray[np.int32]:
    """Return the priorities of n arrivals; with ``None``, all are the same.

    Raises:
        TypeError: ``values`` does not hold whole numbers.
        ValueError: it does not hold n numbers of at most 32 bits.
    """
    priorities = np.zeros(n, np.int32) if values is None else np.asarray(values)
    if priorities.dtype.kind not in "iu" and priorities.size:
        raise TypeError(expected("priorities", "whole numbers", values))
    if priorities.shape != (n,):
        raise ValueError(expected("priorities", f"one for each of {n} arrivals", priorities.shape))
    if priorities.size and not (_PRIORITIES.min <= priorities.min() and priorities.max() <= _PRIORITIES.max):
        raise ValueError(expected("priorities", "whole numbers of 32 bits", values))
    return priorities.astype(np.int32)


def _instants(name: str, values: ArrayLike) -> NDArray[np.float64]:
    instants = real_array(name, values)
    if instants.ndim != 1:
        raise ValueError(expected(name, "one dimension", instants.shape))
    finite = np.isfinite(instants)
    if not finite.all():
        at = int(finite.argmin())
        raise ValueError(expected(name, f"finite seconds; element {at} is none", float(instants[at])))
    return instants


def check_cv(name: str, value: object) -> float:
    """Return a coefficient of variation whose square and its inverse are finite.

    Raises:
        TypeError, ValueError: it is not a number from 1e-6 to 1e6.
    """
    expectation = f"a number from {_LEAST_CV:g} to {_MOST_CV:g}"
    return check_number(name, value, expectation, lambda it: _LEAST_CV <= it <= _MOST_CV)


def _stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(check_count("seed", seed, at_least=0))


def _count(n: object) -> int:
    return check_count("n", n, at_least=0, at_most=_MOST_ARRIVALS)


def _positive(name: str, value: object) -> float:
    return check_number(name, value, "a finite number > 0", lambda it: 0.0 < it < np.inf)
