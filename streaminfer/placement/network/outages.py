"""`Outages`: times in which a radio link delivers nothing, and round-trip times that depend on them.

Design:
    Packets wait for the end of an outage and arrive together. The first packet waits longest, and each later packet
    waits less by the time between them: in an outage, the delays fall along a slope of -1. Independent draws from the
    distribution of a whole run get the share of slow responses right, but not how they cluster: the tail of a minute,
    the burst after an outage, and the number of requests that miss their deadline together.

    The fit finds the stretches above `SLOW_S`. It splits a stretch where a message was sent after the previous one had
    arrived, or where the delay rises by more than jitter. An outage begins halfway between two messages, on average. It
    ends when its first message was sent, plus the slowest round trip of the stretch, minus a calm round trip, or when
    the next outage begins. Outages start at a constant rate, and each has a measured length. Outside of outages,
    round-trip times are drawn from the measured ones up to `SLOW_S`.
"""

from collections.abc import Sequence
from typing import Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import (
    LONGEST_S,
    check_amount,
    check_count,
    check_duration,
    check_instance,
    expected,
    field_check,
)
from streaminfer.placement.distribution import Distribution

__all__ = ["SLOW_S", "Outages"]

SLOW_S = 0.1
"""Round-trip times above it belong to an outage: five times the median of all 5G runs, twice the p99 of calm ones."""

_JITTER_S = 0.05
"""A delay that rises by less within a stretch is jitter, not another outage: one period between messages."""

_DISTRIBUTION = field_check(check_instance, Distribution, "a Distribution")

Floats = NDArray[np.float64]


@attrs.frozen(kw_only=True)
class Outages:
    """Outages of an access network.

    Attributes:
        per_hour: number of outages that start in an hour of working network.
        length_s: duration of an outage.
        calm_s: round-trip times outside of outages.
    """

    per_hour: float = attrs.field(validator=field_check(check_amount, positive=True))
    length_s: Distribution = attrs.field(validator=_DISTRIBUTION)
    calm_s: Distribution = attrs.field(validator=_DISTRIBUTION)

    @classmethod
    def fit(cls, runs: Sequence[tuple[Floats, Floats]]) -> Self | None:
        """Find the outages of runs.

        Args:
            runs: for each, the instants of sending, ascending, and the round-trip times; both in seconds.

        Returns:
            The outages; ``None`` if there are none, or if there are no calm round-trip times.
        """
        all_calm = np.concatenate([rtt_s[rtt_s <= SLOW_S] for _, rtt_s in runs])
        if not all_calm.size:
            return None
        calm_s = float(np.median(all_calm))
        lengths = [length for sent_s, rtt_s in runs for length in _lengths(sent_s, rtt_s, calm_s)]
        if not lengths:
            return None
        # a pause in sending says nothing about the network
        seconds = sum(float(np.minimum(np.diff(sent_s), SLOW_S).sum()) for sent_s, _ in runs)
        working_s = max(seconds - sum(lengths), SLOW_S)
        return cls(
            per_hour=len(lengths) / working_s * 3600.0,
            length_s=Distribution.from_samples(lengths, points=60),
            calm_s=Distribution.from_samples(all_calm, points=60),
        )

    @property
    def share_of_time(self) -> float:
        """The part of the time that is outage."""
        down_s = self.per_hour * float(self.length_s.values_s @ self.length_s.shares)
        return down_s / (3600.0 + down_s)

    def sample(self, count: int, *, period_s: float, rng: np.random.Generator) -> Floats:
        """Draw the round-trip times of messages that are sent one after the other.

        Args:
            count: number of messages.
            period_s: seconds between two messages.
            rng: source of randomness.

        Returns:
            Shape (count,), float64, seconds, in the order of sending.
        """
        count = check_count("count", count)
        period_s = check_duration("period_s", period_s, positive=True)
        if count * period_s > LONGEST_S:
            raise ValueError(expected("period_s", f"{count:,} messages within {LONGEST_S:,.0f} seconds", period_s))
        rtt_s = self.calm_s.sample(count, rng)
        sent_s = np.arange(count) * period_s
        at_s = float(rng.exponential(3600.0 / self.per_hour))
        while at_s < sent_s[-1]:
            ends_s = at_s + float(self.length_s.sample(1, rng)[0])
            affected = slice(int(np.searchsorted(sent_s, at_s)), int(np.searchsorted(sent_s, ends_s)))
            rtt_s[affected] += ends_s - sent_s[affected]
            at_s = ends_s + float(rng.exponential(3600.0 / self.per_hour))
        return rtt_s


def _lengths(sent_s: Floats, rtt_s: Floats, calm_s: float) -> list[float]:
    """Return the length of each outage of a run, given the time of a calm round trip."""
    slow = np.flatnonzero(rtt_s > SLOW_S)
    if not slow.size:
        return []
    arrived_s = sent_s[slow] + rtt_s[slow]
    # the next outage begins with a message that was sent after the backlog arrived, or is slower than it explains
    starts = (sent_s[slow][1:] > arrived_s[:-1]) | (np.diff(arrived_s) > np.diff(sent_s[slow]) + _JITTER_S)
    parts = np.concatenate([[0], np.flatnonzero(starts) + 1])
    first_s = sent_s[slow[parts]]
    gaps_s = np.minimum(first_s - sent_s[np.maximum(slow[parts] - 1, 0)], SLOW_S)
    begin_s = first_s - gaps_s / 2
    end_s = first_s + np.maximum.reduceat(rtt_s[slow], parts) - calm_s
    end_s[:-1] = np.minimum(end_s[:-1], begin_s[1:])
    lengths: list[float] = (end_s - begin_s).tolist()
    return lengths
