"""Arrival processes of load tests: data for scenario files that makes a schedule for any duration.

Where `streaminfer.simulation.arrivals` has the process, this module uses it. Rates that change over time (`Diurnal`,
`Ramp`, `Rates`) make a Poisson process by time change: arrivals of rate 1 are mapped through the inverse of the
integrated rate, so the expected number up to any instant is exact.

A schedule depends only on the fields of the process, the duration and the seed.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import LONGEST_S, check_count, check_duration, check_number, expected, field_check
from streaminfer.loadtest.stored_arrays import load_arrays
from streaminfer.simulation import arrivals as processes

__all__ = [
    "ARRIVALS", "Arrivals", "Bursts", "Cameras", "Constant", "Diurnal", "Gamma", "OnOff", "Poisson", "Ramp", "Rates",
    "Replay", "as_arrivals", "check_run_s",
]  # fmt: skip

Floats = NDArray[np.float64]


@runtime_checkable
class Arrivals(Protocol):
    """Arrival process: the instants at which requests are due."""

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        ...


def _rates(values: ArrayLike) -> Floats:
    return real_array("rates", values).copy()


def _instants(values: ArrayLike) -> Floats:
    return real_array("arrivals", values).copy()


def _trace(values: ArrayLike) -> Floats:
    return processes.from_zero("arrivals_s", values)


def _say_instants(instants: Floats) -> str:
    return f"<{instants.size:,} instants>"


def _is_positive(number: float) -> bool:
    return 0 < number < float("inf")


def check_run_s(name: str, value: object) -> float:
    """Return the duration of a run in seconds; its schedule is made before the run, so it cannot be endless.

    Raises:
        TypeError, ValueError: it is not a number of seconds > 0 and ≤ `LONGEST_S`.
    """
    return check_number(name, value, f"seconds > 0 and ≤ {LONGEST_S:,.0f}", lambda it: 0 < it <= LONGEST_S)


_POSITIVE = field_check(check_number, "a finite number > 0", _is_positive)
_NOT_NEGATIVE = field_check(check_number, "a finite number ≥ 0", lambda number: number == 0 or _is_positive(number))
_DURATION = field_check(check_duration, positive=True)


@attrs.frozen
class Constant:
    """Arrivals at equal intervals.

    Args:
        rate: requests per second.
    """

    rate: float = attrs.field(validator=_POSITIVE)

    def schedule(self, duration_s: float, seed: int) -> Floats:  # noqa: ARG002 - nothing is random
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        processes.check_size("rate * duration_s", duration_s * self.rate)
        instants: Floats = np.arange(int(np.ceil(duration_s * self.rate))) / self.rate
        return instants[instants < duration_s]


@attrs.frozen
class Poisson:
    """Arrivals of many independent callers.

    Args:
        rate: mean requests per second.
    """

    rate: float = attrs.field(validator=_POSITIVE)

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        return _draw_until(duration_s, self.rate, lambda n: processes.poisson(self.rate, n, seed))


@attrs.frozen
class Gamma:
    """Arrivals in clumps, with gamma-distributed gaps.

    Args:
        rate: mean requests per second.
        cv: coefficient of variation of the gaps; 1 makes a Poisson process.
    """

    rate: float = attrs.field(validator=_POSITIVE)
    cv: float = attrs.field(default=4.0, validator=field_check(processes.check_cv))

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        # a run begins at a random point of a gap: starting with a clump would add (cv² - 1) / 2 requests on average
        variance, rng = self.cv**2, np.random.default_rng([seed, 1])
        first_s = rng.random() * rng.gamma(1 + 1 / variance, variance / self.rate)

        def draw(count: int) -> Floats:
            drawn: Floats = processes.gamma(self.rate, count, seed, cv=self.cv)
            drawn += first_s - drawn[0]
            return drawn

        return _draw_until(duration_s, self.rate, draw)


@attrs.frozen
class OnOff:
    """Poisson at a rate that switches between two levels after exponentially distributed times.

    Args:
        rate: requests per second that ``on_times`` and ``off_times`` multiply; with the defaults it is the mean.
        on_s: mean duration of the high level.
        off_s: mean duration of the low level.
        on_times: high level, as a multiple of ``rate``.
        off_times: low level, as a multiple of ``rate``.
    """

    rate: float = attrs.field(validator=_POSITIVE)
    on_s: float = attrs.field(default=0.05, validator=_DURATION)
    off_s: float = attrs.field(default=0.2, validator=_DURATION)
    on_times: float = attrs.field(default=3.0, validator=_POSITIVE)
    off_times: float = attrs.field(default=0.5, validator=_POSITIVE)

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        levels = {"on_s": self.on_s, "off_s": self.off_s, "on_times": self.on_times, "off_times": self.off_times}
        # `on_off` begins at its low level; if every run did, short runs would have too few requests
        if np.random.default_rng([seed, 1]).random() * (self.on_s + self.off_s) < self.on_s:
            levels = {"on_s": self.off_s, "off_s": self.on_s, "on_times": self.off_times, "off_times": self.on_times}
        mean_times = (self.on_s * self.on_times + self.off_s * self.off_times) / (self.on_s + self.off_s)
        return _draw_until(duration_s, self.rate * mean_times, lambda n: processes.on_off(self.rate, n, seed, **levels))


@attrs.frozen
class Bursts:
    """Quiet periods, interrupted by bursts of many times the quiet rate.

    Args:
        rate: mean requests per second over bursts and quiet periods.
        on_s: mean duration of a burst.
        off_s: mean duration of a quiet period.
        times: rate during a burst, as a multiple of the quiet rate.
    """

    rate: float = attrs.field(validator=_POSITIVE)
    on_s: float = attrs.field(default=0.05, validator=_DURATION)
    off_s: float = attrs.field(default=0.45, validator=_DURATION)
    times: float = attrs.field(default=10.0, validator=_POSITIVE)

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        quiet_rate = self.rate * (self.on_s + self.off_s) / (self.on_s * self.times + self.off_s)
        switching = OnOff(quiet_rate, on_s=self.on_s, off_s=self.off_s, on_times=self.times, off_times=1.0)
        return switching.schedule(duration_s, seed)


@attrs.frozen
class Cameras:
    """Frames of cameras with the same rate and different phases.

    Args:
        fps: frames per second of each camera.
        cameras: number of cameras.
        jitter_s: largest delay of a frame; delays are uniform between 0 and this.
    """

    fps: float = attrs.field(validator=_POSITIVE)
    cameras: int = attrs.field(validator=field_check(check_count))
    jitter_s: float = attrs.field(default=0.0, validator=field_check(check_duration))

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        frames = processes.cameras(self.fps, self.cameras, duration_s, seed, jitter_s=self.jitter_s)
        return frames[frames < duration_s]


@attrs.frozen
class Diurnal:
    """Poisson at a rate that rises and falls as over a day, beginning at its lowest.

    Args:
        rate: mean requests per second.
        peak: highest rate as a multiple of the mean, from 1 to 2; the lowest is 2 - peak.
        period_s: seconds of one day; ``None``: the duration of the run.
    """

    rate: float = attrs.field(validator=_POSITIVE)
    peak: float = attrs.field(
        default=1.8, validator=field_check(check_number, "a number from 1 to 2", lambda number: 1 <= number <= 2)
    )
    period_s: float | None = attrs.field(
        default=None, validator=field_check(check_duration, positive=True, optional=True)
    )

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        period_s = self.period_s or duration_s or 1.0  # of any length, if nothing arrives
        at = np.linspace(0.0, 1.0, 1001)  # all periods are the same, so the curve of one is enough
        expected_counts = at - (self.peak - 1) * np.sin(2 * np.pi * at) / (2 * np.pi)

        def draw(count: int) -> Floats:
            periods, within = np.divmod(processes.poisson(self.rate * period_s, count, seed), 1.0)
            drawn: Floats = (periods + np.interp(within, expected_counts, at)) * period_s
            return drawn

        return _draw_until(duration_s, self.rate, draw)


@attrs.frozen
class Ramp:
    """Poisson at a rate that changes linearly, to see where a service breaks.

    Args:
        from_rate: requests per second at the start.
        to_rate: requests per second at the end.
    """

    from_rate: float = attrs.field(validator=_NOT_NEGATIVE)
    to_rate: float = attrs.field(validator=_NOT_NEGATIVE)

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, seconds, ascending."""
        shares = np.linspace(0.0, 1.0, 1001)  # of the duration, which may be 0
        at_s = shares * duration_s
        mean_rates = self.from_rate + (self.to_rate - self.from_rate) * shares / 2
        return _poisson_through(at_s, mean_rates * at_s, duration_s, seed)


@attrs.frozen(eq=False)
class Rates:
    """Poisson at a rate given by a table, for example the counts per minute of a recorded service.

    Args:
        rates: requests per second, one rate per window.
        window_s: duration of a window.
    """

    rates: Floats = attrs.field(converter=_rates, repr=lambda rates: f"<{rates.size:,} rates>")
    window_s: float = attrs.field(validator=_DURATION)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, key: str, window_s: float, rate: float) -> "Rates":
        """Read recorded counts from an ``.npz``.

        Args:
            path: the file.
            key: name of the array of counts, with windows on its last axis; other axes are summed.
            window_s: duration of a window in the test: 1.0 plays a recorded minute in a second.
            rate: mean requests per second in the test.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has no such array, or its values cannot be counts.
        """
        rate = check_number("rate", rate, "a finite number > 0", _is_positive)
        (column,) = load_arrays(path, key)
        recorded = np.asarray(column, np.float64)
        counts = np.atleast_1d(recorded.sum(axis=tuple(range(recorded.ndim - 1))))
        if not 0 < counts.sum() < np.inf:
            raise ValueError(expected("counts", "counts of which some are above 0", counts))
        return cls(counts * (rate / counts.mean()), window_s)

    @rates.validator
    def _check(self, attribute: Any, value: Floats) -> None:
        if value.ndim != 1 or not value.size or not np.isfinite(value).all() or value.min() < 0:
            raise ValueError(expected(attribute.name, "rates ≥ 0 in one dimension", value))

    def schedule(self, duration_s: float, seed: int) -> Floats:
        """Return the instants from 0 until ``duration_s``, or the end of the table, seconds, ascending."""
        edges: Floats = np.arange(self.rates.size + 1, dtype=np.float64) * self.window_s
        return _poisson_through(edges, np.concatenate([[0.0], np.cumsum(self.rates * self.window_s)]), duration_s, seed)


@attrs.frozen(eq=False)
class Replay:
    """Arrivals of a recorded trace.

    Args:
        arrivals_s: instants in seconds on any clock, in any order.
        rate: mean requests per second, reached by stretching or compressing time; ``None``: as recorded.
    """

    arrivals_s: Floats = attrs.field(converter=_trace, repr=_say_instants)
    rate: float | None = attrs.field(
        default=None, validator=field_check(check_number, "a finite number > 0", _is_positive, optional=True)
    )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        key: str = "t",
        unit_s: float = 1.0,
        run: int | None = None,
        rate: float | None = None,
    ) -> "Replay":
        """Read a trace from an ``.npz``.

        Args:
            path: the file.
            key: name of the array of instants.
            unit_s: unit of the instants, in seconds.
            run: number of the run, if an array ``offsets`` divides the trace into several; ``None``: all.
            rate: as for the class.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has no such array or run.
        """
        unit_s = check_duration("unit_s", unit_s, positive=True)
        (instants,) = load_arrays(path, key, run=run)
        return cls(np.asarray(instants, np.float64) * unit_s, rate)

    def schedule(self, duration_s: float, seed: int) -> Floats:  # noqa: ARG002 - nothing is random
        """Return the instants from 0 until ``duration_s``, or the end of the trace, seconds, ascending."""
        instants = self.arrivals_s
        if self.rate is not None and instants[-1:].any():  # neither empty nor all at one instant
            instants = instants * ((instants.size - 1) / (self.rate * instants[-1]))
        return instants[instants < duration_s]


ARRIVALS: dict[str, type[Any]] = {
    "constant": Constant, "poisson": Poisson, "gamma": Gamma, "on_off": OnOff, "bursts": Bursts, "cameras": Cameras,
    "diurnal": Diurnal, "ramp": Ramp, "rates": Rates, "replay": Replay,
}  # fmt: skip
"""Arrival classes by their ``kind`` in a scenario file."""


def as_arrivals(value: Arrivals | ArrayLike) -> Arrivals:
    """Return arrivals as an object with a schedule: instants in seconds become `Instants`.

    Raises:
        TypeError: ``value`` is neither.
    """
    expectation = "arrivals such as si.loadtest.Poisson(100), or instants in seconds"
    if np.isscalar(value) or isinstance(value, type):  # a rate, a class
        raise TypeError(expected("arrivals", expectation, value))
    if isinstance(value, Arrivals):
        return value
    try:
        return Instants(value)
    except TypeError:
        raise TypeError(expected("arrivals", expectation, value)) from None


@attrs.frozen(eq=False)
class Instants:
    """Arrivals at given instants, unchanged; a `Replay` shifts its trace to begin at 0.

    Args:
        arrivals_s: seconds ≥ 0, ascending.
    """

    arrivals_s: Floats = attrs.field(converter=_instants, repr=_say_instants)

    @arrivals_s.validator
    def _check(self, _attribute: Any, value: Floats) -> None:
        processes.arrivals_in_ns(value, "arrivals")

    def schedule(self, duration_s: float, seed: int) -> Floats:  # noqa: ARG002 - nothing is random
        """Return the instants before ``duration_s``."""
        return self.arrivals_s[self.arrivals_s < duration_s]


def _draw_until(duration_s: float, rate: float, draw: Callable[[int], Floats]) -> Floats:
    """Return the arrivals before ``duration_s``; ``draw(n)`` must begin with the same arrivals for every ``n``."""
    expected_count = duration_s * rate
    processes.check_size("rate * duration_s", expected_count)
    count = int(expected_count * 1.1) + 100
    while (drawn := draw(count))[-1] < duration_s:
        count *= 2
    return drawn[: np.searchsorted(drawn, duration_s)]


def _poisson_through(at_s: Floats, expected_counts: Floats, duration_s: float, seed: int) -> Floats:
    """Return a Poisson process from the expected number of arrivals up to each given instant."""
    total = float(expected_counts[-1])
    if not total:
        return np.empty(0)
    drawn = _draw_until(total, 1.0, lambda n: processes.poisson(1.0, n, seed))
    arrivals = np.interp(drawn, expected_counts, at_s)
    return arrivals[arrivals < duration_s]
