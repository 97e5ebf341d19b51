"""`Distribution`: durations that vary, as values and their shares."""

from collections.abc import Sequence
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import check_count, check_instance, check_number, expected

__all__ = ["Distribution"]

_TAIL_FROM = 0.9
"""Share of the samples for half of the points; the other half is for the tail, which an SLO is about."""

_SUM_TOLERANCE = 1e-9
_MAX_SAMPLES = 10**9

Floats = NDArray[np.float64]


def _values(values_s: ArrayLike) -> Floats:
    return _numbers("values_s", values_s)


def _shares(shares: ArrayLike) -> Floats:
    return np.atleast_1d(real_array("shares", shares, "numbers > 0 with the sum 1")).copy()


@attrs.frozen(eq=False, repr=False)
class Distribution:
    """A distribution of durations: ascending values, and the share of each.

    Immutable and comparable. `from_samples` makes one from measurements.

    Attributes:
        values_s: shape (n,), float64, seconds ≥ 0, ascending, read-only.
        shares: shape (n,), float64, > 0, their sum is 1, read-only.
    """

    values_s: Floats = attrs.field(converter=_values)
    shares: Floats = attrs.field(converter=_shares)

    @shares.default
    def _equal_shares(self) -> Floats:
        return np.full(self.values_s.size, 1.0 / self.values_s.size)

    def __attrs_post_init__(self) -> None:
        values, shares = self.values_s, self.shares
        if (np.diff(values) < 0).any():
            raise ValueError(expected("values_s", "seconds in ascending order", values))
        if shares.shape != values.shape or not (shares > 0).all() or abs(shares.sum() - 1) > _SUM_TOLERANCE:
            raise ValueError(expected("shares", f"{values.size} numbers > 0 with the sum 1", shares))
        values.flags.writeable = shares.flags.writeable = False

    @classmethod
    def from_samples(cls, samples_s: ArrayLike, *, points: int = 200) -> Self:
        """Return the distribution of measured durations.

        If there are more samples than points, the largest value of a block of neighbors replaces the block, so the
        result is never below the samples. Half of the points describe the slowest tenth.

        Args:
            samples_s: seconds ≥ 0, at least one, in any order.
            points: maximum number of values to keep, ≥ 2.

        Raises:
            TypeError, ValueError: the arguments are not such numbers.
        """
        points = check_count("points", points, at_least=2)
        samples = np.sort(_numbers("samples_s", samples_s))
        n = samples.size
        if n <= points:
            return cls.of(samples.tolist())
        body = np.linspace(0.0, _TAIL_FROM, points // 2 + 1)
        tail = 1.0 - np.geomspace(1.0 - _TAIL_FROM, 1.0 / n, points - points // 2)
        ends = np.unique(np.rint(np.concatenate([body, tail, [1.0]]) * n).astype(int))
        return cls.of(samples[ends[1:] - 1].tolist(), (np.diff(ends) / n).tolist())

    @classmethod
    def of(cls, values_s: float | Sequence[float], shares: Sequence[float] | None = None) -> Self:
        """Return a distribution from its values.

        Args:
            values_s: seconds ≥ 0, ascending, or one number.
            shares: share of each value, > 0, with the sum 1; ``None``: equal shares.

        Raises:
            TypeError, ValueError: not such numbers.
        """
        return cls(values_s) if shares is None else cls(values_s, shares)

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Read what `to_json` returned: a number, a list of numbers, or a mapping of both fields.

        Raises:
            TypeError, ValueError: ``stored`` is something else.
        """
        if isinstance(stored, dict):
            if set(stored) != {"values_s", "shares"}:
                raise ValueError(expected("keys", "'values_s' and 'shares'", list(stored)))
            return cls.of(stored["values_s"], stored["shares"])
        return cls.of(stored)

    def to_json(self) -> float | list[float] | dict[str, list[float]]:
        """Return the distribution in a form for JSON."""
        if self.values_s.size == 1:
            return float(self.values_s[0])
        if np.ptp(self.shares) < _SUM_TOLERANCE / self.shares.size:
            values: list[float] = self.values_s.tolist()
            return values
        return {"values_s": self.values_s.tolist(), "shares": self.shares.tolist()}

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least ``share`` of the durations do not exceed, in seconds.

        Raises:
            TypeError, ValueError: ``share`` is not a number from 0 to 1.
        """
        share = check_number("share", share, "a share from 0 to 1", lambda it: 0 <= it <= 1)
        at = int(np.searchsorted(np.cumsum(self.shares), share - _SUM_TOLERANCE))
        return float(self.values_s[min(at, self.values_s.size - 1)])

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Draw durations.

        Returns:
            Shape (count,), float64, seconds.
        """
        count = check_count("count", count, at_least=0, at_most=_MAX_SAMPLES)
        check_instance("rng", rng, np.random.Generator, "a NumPy Generator")
        return rng.choice(self.values_s, size=count, p=self.shares)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Distribution):
            return NotImplemented
        return np.array_equal(self.values_s, other.values_s) and np.array_equal(self.shares, other.shares)

    def __hash__(self) -> int:
        return hash((self.values_s.tobytes(), self.shares.tobytes()))

    def __repr__(self) -> str:
        if self.values_s.size == 1:
            return f"<Distribution {format_duration(float(self.values_s[0]))}>"
        p50, p99 = (format_duration(self.quantile(share)) for share in (0.5, 0.99))
        return f"<Distribution of {self.values_s.size} values, p50 {p50}, p99 {p99}>"


def _numbers(name: str, values: ArrayLike) -> Floats:
    """Return a one-dimensional copy of finite numbers ≥ 0, at least one."""
    expectation = "finite numbers of seconds ≥ 0, at least one"
    numbers = np.atleast_1d(real_array(name, values, expectation)).copy()
    if numbers.ndim != 1:
        raise TypeError(expected(name, expectation, values))
    if not numbers.size or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise ValueError(expected(name, expectation, values))
    return numbers
