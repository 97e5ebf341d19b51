"""`FittedAccess`: the last mile of users, fitted to measured runs, and what can be promised about it.

Design:
    The messages of one run share a road, an hour and a cell. So a profile is as certain as its runs are alike, whatever
    the number of messages. A promise for a share of the requests says that the quantile of future runs will lie within
    15 % of the measured one. To find its uncertainty, runs are drawn with replacement, once for the past and once, just
    as many, for the future. The ratio of the two quantiles is the error that a plan would have made. If 95 % of these
    errors are not within 15 %, or fewer than `MIN_RUNS` runs were measured, the share is unpromisable.

    The profiles of the package are such fits to public measurements; `benchmarks/placement/fit_access.py` makes them.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.distributions.quantiles import normal_quantile, student_quantile
from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import (
    check_choice,
    check_count,
    check_instance,
    check_number,
    check_share,
    expected,
    is_name,
)
from streaminfer.errors import StreamInferError
from streaminfer.placement.distribution import Distribution
from streaminfer.placement.network.outages import Outages
from streaminfer.placement.problem import AccessProfile
from streaminfer.placement.records import read_record, write_record

__all__ = ["MIN_RUNS", "AccessPromise", "FittedAccess", "Unpromisable", "access_names", "load_access"]

MIN_RUNS = 5
"""Fewer runs look alike by chance: fits to two or three runs promised p99s that were off by 70 %."""

_DRAWS = 200
_CERTAINTY = 0.95
_POINTS = 40
_NEGLIGIBLE_S = 0.002
"""An error too small to matter for an SLO over a network: the last mile of a wired host is some 0.2 ms."""

_GRID: list[float] = [*np.linspace(0, 0.9, 61)[1:], *(1 - np.geomspace(0.1, 1e-4, 60)[1:]), 1.0]
_SHARES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)

Floats = NDArray[np.float64]


class Unpromisable(StreamInferError, ValueError):  # noqa: N818 - it names what the share is
    """Raised when the measurements of an access network do not support a promise.

    Attributes:
        promise: what the measurements say about the share.
    """

    def __init__(self, name: str, promise: "AccessPromise", best: float | None) -> None:
        hint = "no share of the requests can be promised" if best is None else f"a share of {best:.4g} can be promised"
        super().__init__(f"access profile {name!r}: {promise.reason}; {hint}")
        self.promise = promise
        self._arguments = name, promise, best

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


@attrs.frozen(kw_only=True)
class AccessPromise:
    """What measurements say about a share of the requests.

    Attributes:
        share: share of the requests.
        rtt_s: quantile of the round-trip times of all runs at this share.
        low_s: lower end of the interval in which this quantile of future runs lies with 95 % certainty.
        high_s: upper end of this interval.
        runs: number of measured runs.
        reason: why the share is unpromisable; empty: it can be promised.
    """

    share: float
    rtt_s: float
    low_s: float
    high_s: float
    runs: int
    reason: str

    @property
    def is_promisable(self) -> bool:
        """True if the share can be promised."""
        return not self.reason


@attrs.frozen(kw_only=True)
class FittedAccess:
    """An access network as it was measured.

    Attributes:
        name: name of the profile.
        source: where the measurements come from, with their license.
        runs: the round-trip times of each run.
        messages: number of messages of each run.
        outages: times without delivery; ``None``: no outage was found, or the instants of sending are not known.
    """

    name: str
    runs: tuple[Distribution, ...]
    messages: tuple[int, ...]
    source: str = ""
    outages: Outages | None = None

    def __attrs_post_init__(self) -> None:
        counts = [check_count("messages", count) for count in self.messages]
        if not counts or len(counts) != len(self.runs):
            raise ValueError(expected("messages", "a number for each run, at least one", self.messages))

    @classmethod
    def fit(
        cls,
        name: str,
        runs_s: Sequence[Any],
        *,
        sent_s: Sequence[Any] | None = None,
        source: str = "",
    ) -> Self:
        """Fit a profile.

        Args:
            name: name of the profile.
            runs_s: the round-trip times of each run, in seconds and in the order of sending. A run is one session of
                measuring: a drive, an evening, a device. Runs under other conditions belong in another profile.
            sent_s: instants of sending of each run, ascending, in seconds, which show the outages; ``None``: not known.
            source: origin of the measurements.

        Raises:
            TypeError, ValueError: the arguments are not such runs.
        """
        check_instance("name", name, is_name, "a name")
        for argument, several in (("runs_s", runs_s), ("sent_s", () if sent_s is None else sent_s)):
            check_instance(argument, several, Sequence | np.ndarray, "a sequence of runs")
        if not len(runs_s):  # an array of runs has no truth value
            raise ValueError(expected("runs_s", "at least one run", runs_s))
        runs = tuple(Distribution.from_samples(run, points=_POINTS) for run in runs_s)
        outages = None
        if sent_s is not None:
            if len(sent_s) != len(runs_s):
                raise ValueError(expected("sent_s", f"instants of each of the {len(runs_s)} runs", sent_s))
            timed = [
                (real_array(f"sent_s[{at}]", sent), real_array("runs_s", run))
                for at, (sent, run) in enumerate(zip(sent_s, runs_s, strict=True))
            ]
            for at, (sent, run) in enumerate(timed):
                if sent.shape != run.shape or not (np.isfinite(sent).all() and (np.diff(sent) >= 0).all()):
                    raise ValueError(expected(f"sent_s[{at}]", f"{run.size} ascending instants", sent))
            outages = Outages.fit(timed)
        messages = tuple(np.size(run) for run in runs_s)
        return cls(name=name, runs=runs, messages=messages, source=source, outages=outages)

    def promise(self, share: float = 0.99, *, within: float = 0.15) -> AccessPromise:
        """Return what can be promised for a share of the requests.

        Args:
            share: share of the requests, between 0 and 1.
            within: the relative error that is allowed.

        Raises:
            TypeError, ValueError: not such numbers.
        """
        share = check_share("share", share)
        within = check_number("within", within, "a number above 0", lambda it: it > 0)
        count = len(self.runs)
        rng = np.random.default_rng(0)  # a fixed seed: equal measurements give equal promises
        draws = [rng.multinomial(count, np.full(count, 1 / count), _DRAWS) for _ in range(2)]
        estimate = float(self._quantiles(np.ones((1, count)), [share])[0, 0])
        past, future = (self._quantiles(counts, [share])[:, 0] for counts in draws)
        tail = (1 - _CERTAINTY) / 2
        low, high = np.quantile((future + 1e-9) / (past + 1e-9), [tail, 1 - tail]) ** _widening_factor(count)
        reason = ""
        if count < MIN_RUNS:
            reason = f"{count} runs are fewer than {MIN_RUNS}"
        elif min(low - 1 / (1 + within), 1 + within - high) < 0 and estimate * max(high - 1, 1 - low) > _NEGLIGIBLE_S:
            interval = f"{format_duration(estimate * low)} and {format_duration(estimate * high)}"
            reason = f"p{share * 100:g} of {format_duration(estimate)} may be anything between {interval} in other runs"
        return AccessPromise(
            share=share, rtt_s=estimate, low_s=estimate * low, high_s=estimate * high, runs=count, reason=reason
        )

    def profile(
        self, share: float = 0.99, *, within: float = 0.15, bandwidth_bytes_s: float | None = None
    ) -> AccessProfile:
        """Return the profile for a `Problem` with service classes that promise at most this share.

        Args:
            share: promised share of the requests.
            within: the relative error that is allowed.
            bandwidth_bytes_s: bandwidth of one user.

        Raises:
            Unpromisable: the measurements do not support the promise.
            TypeError, ValueError: not such numbers.
        """
        promise = self.promise(share, within=within)
        if not promise.is_promisable:
            best = max((it for it in _SHARES if self.promise(it, within=within).is_promisable), default=None)
            raise Unpromisable(self.name, promise, best)
        return AccessProfile(name=self.name, rtt=self.rtt, bandwidth_bytes_s=bandwidth_bytes_s)

    @property
    def rtt(self) -> Distribution:
        """Round-trip times of all messages."""
        values = self._quantiles(np.ones((1, len(self.runs))), _GRID)[0]
        return Distribution.of(values.tolist(), np.diff([0.0, *_GRID]).tolist())

    def _quantiles(self, counts: NDArray[Any], shares: Sequence[float]) -> Floats:
        """Return quantiles of the messages of some runs.

        Args:
            counts: shape (draws, runs), how often each run is taken.
            shares: shares of the messages.

        Returns:
            Shape (draws, shares), float64, seconds.
        """
        values = np.concatenate([run.values_s for run in self.runs])
        owner = np.repeat(np.arange(len(self.runs)), [run.values_s.size for run in self.runs])
        weights = np.concatenate([run.shares * count for run, count in zip(self.runs, self.messages, strict=True)])
        order = np.argsort(values, kind="stable")
        values, owner, weights = values[order], owner[order], weights[order]
        sums = np.cumsum(counts[:, owner] * weights, axis=1)
        at = [np.searchsorted(row, np.asarray(shares) * row[-1] * (1 - 1e-12)) for row in sums]
        return values[np.minimum(at, values.size - 1)]

    def to_json(self) -> dict[str, Any]:
        """Return the profile in a form for JSON, which `from_json` reads."""
        return dict(write_record(self))

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Read what `to_json` returned.

        Raises:
            TypeError, ValueError: ``stored`` is something else.
        """
        return read_record(cls, stored, "profile")

    def __repr__(self) -> str:
        p50, p99 = (format_duration(self.rtt.quantile(share)) for share in (0.5, 0.99))
        return f"<FittedAccess {self.name!r}: {len(self.runs)} runs, p50 {p50}, p99 {p99}>"


def _widening_factor(count: int) -> float:
    """Return the factor that widens the drawn interval for few runs.

    It is the width of Student's 95 % interval over the normal one, times the deviation of a sample over the deviation
    of draws from it.
    """
    degrees, upper = max(count - 1, 1), (1 + _CERTAINTY) / 2
    student, normal = student_quantile(upper, degrees), normal_quantile(upper)
    return student / normal * math.sqrt((degrees + 1) / degrees)


def access_names() -> tuple[str, ...]:
    """Return the names of the profiles in the package."""
    return tuple(_stored())


def load_access(name: str) -> FittedAccess:
    """Return a profile that was fitted to public measurements.

    Args:
        name: one of `access_names`.

    Raises:
        TypeError, ValueError: there is no profile of this name.
    """
    stored = _stored()
    return FittedAccess.from_json({"name": check_choice("name", name, tuple(stored)), **stored[name]})


@cache
def _stored() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("access_profiles.json").read_text(encoding="utf-8")
    profiles: dict[str, Any] = json.loads(text)
    return profiles
