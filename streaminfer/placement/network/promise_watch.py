"""`PromiseWatch`: tells when a promised latency has become untenable.

Design:
    A promise allows a share of the requests to be late. For each promise, the watch bets a wealth after each block of
    requests, on the alternative that three times as many are late: ``w = max(w, 1) · (1 + bet · (late - allowed))``,
    with the bet of the likelihood ratio. While the promise holds, the factor is at most 1 on average. So the wealth
    passes ``1 / false_alarm`` in less than ``false_alarm`` of the blocks, by Ville's inequality for each restart at 1.
    There is no window and no fixed sample size; a promise that holds for a year is tested as well as a new one.

    Requests that are close in time are late together, so the watch bets on blocks and not on single requests. A block
    should be longer than an event that makes requests late at the same time.

Complexity:
    A few floating-point operations for each request; no allocation.

References:
    Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", NEJSDS 2024.
"""

import math
from collections.abc import Mapping

import attrs

from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_instance,
    check_number,
    check_share,
    expected,
)

__all__ = ["LatencyPromise", "PromiseState", "PromiseWatch"]

_ALTERNATIVE = 3.0
"""Multiple of the promised late requests that the watch detects soonest."""


@attrs.frozen(kw_only=True)
class LatencyPromise:
    """Promise that a share of the requests takes at most ``latency_s``.

    Attributes:
        latency_s: the bound, of a response or a round trip, in seconds.
        share: share of the requests within the bound, between 0 and 1.
    """

    latency_s: float
    share: float


@attrs.frozen(kw_only=True)
class PromiseState(Snapshot):
    """A promise at one moment.

    Attributes:
        promise: the bound and the share.
        requests: number of observed requests.
        kept: the share of them within the bound; NaN: no request was observed.
        evidence: evidence against the promise, which is untenable from 1 on.
        untenable: the evidence has reached 1 since the last reset.
    """

    promise: LatencyPromise
    requests: int
    kept: float
    evidence: float
    untenable: bool


class _Bet:
    """The wealth of one promise."""

    def __init__(self, promise: LatencyPromise) -> None:
        self.promise = promise
        allowed = 1.0 - promise.share
        alternative = min(_ALTERNATIVE * allowed, (1.0 + allowed) / 2.0)
        self.factor = (alternative - allowed) / (allowed * promise.share)
        self.requests = self.late = self.late_before = 0
        self.log_wealth = self.peak = 0.0

    def end_block(self, size: int) -> None:
        excess = (self.late - self.late_before) / size - (1.0 - self.promise.share)
        self.log_wealth = max(self.log_wealth, 0.0) + math.log1p(self.factor * excess)
        self.peak = max(self.peak, self.log_wealth)
        self.late_before = self.late


class PromiseWatch:
    """Compares latencies with promises, request by request.

    ::

        watch = PromiseWatch({"Lyon": LatencyPromise(latency_s=0.2, share=0.99)})
        if watch.observe("Lyon", latency_s):
            ...  # plan again, with the round-trip times of today

    Args:
        promises: promises by name, such as the name of a cluster.
        block: number of requests per observation; more than one if an outage makes many requests late together.
        false_alarm: largest share of the blocks that may raise an alarm about a promise that holds.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Not thread-safe.
    """

    def __init__(self, promises: Mapping[str, LatencyPromise], *, block: int = 1, false_alarm: float = 0.001) -> None:
        self._block = check_count("block", block)
        rate = check_share("false_alarm", false_alarm)
        self._threshold = -math.log(rate)
        check_instance("promises", promises, Mapping, "LatencyPromises by name")
        self._bets: dict[str, _Bet] = {}
        for name, promise in promises.items():
            check_instance("promises", promise, LatencyPromise, "LatencyPromises by name")
            check_duration(f"latency_s of {name!r}", promise.latency_s, positive=True)
            check_share(f"share of {name!r}", promise.share)
            self._bets[name] = _Bet(promise)

    def observe(self, name: str, latency_s: float) -> bool:
        """Record one latency.

        Args:
            name: name of the promise.
            latency_s: latency of the request, in seconds; infinity if it got no response.

        Returns:
            Whether the promise became untenable with this request; true only once until `reset`.

        Raises:
            TypeError, ValueError: there is no such promise, or the latency is not a number.
        """
        bet = self._bet(name)
        bet.late += not check_number("latency_s", latency_s, "a number", lambda _: True) <= bet.promise.latency_s
        bet.requests += 1
        if bet.requests % self._block:
            return False
        was_tenable = bet.peak < self._threshold
        bet.end_block(self._block)
        return was_tenable and bet.peak >= self._threshold

    def reset(self, name: str) -> None:
        """Forget the observations of a promise, for instance after a new plan.

        Raises:
            ValueError: there is no such promise.
        """
        self._bets[name] = _Bet(self._bet(name).promise)

    def _bet(self, name: str) -> _Bet:
        try:
            return self._bets[name]
        except (KeyError, TypeError):  # TypeError: not hashable
            raise ValueError(expected("name", "one of " + ", ".join(map(repr, self._bets)), name)) from None

    def untenable(self) -> tuple[str, ...]:
        """Return the names of the promises that have become untenable: reason to plan again."""
        return tuple(name for name, bet in self._bets.items() if bet.peak >= self._threshold)

    def statistics(self) -> dict[str, PromiseState]:
        """Return a frozen snapshot of each promise."""
        return {
            name: PromiseState(
                promise=bet.promise,
                requests=bet.requests,
                kept=1.0 - bet.late / bet.requests if bet.requests else math.nan,
                evidence=bet.peak / self._threshold,
                untenable=bet.peak >= self._threshold,
            )
            for name, bet in self._bets.items()
        }

    def __repr__(self) -> str:
        return f"<PromiseWatch: {len(self._bets)} promises, {len(self.untenable())} untenable>"

    def _repr_html_(self) -> str:
        rows = [
            (name, f"{it.promise.share:.1%} in {it.promise.latency_s * 1e3:.0f} ms", f"{it.requests:,}",
             f"{it.kept:.1%}", f"{it.evidence:.0%}", "untenable" if it.untenable else "holds")
            for name, it in self.statistics().items()
        ]  # fmt: skip
        return html_table(
            rows, head=("cluster", "promise", "requests", "kept", "evidence", "verdict"), caption=repr(self)
        )
