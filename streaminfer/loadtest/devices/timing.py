"""Timing of a device from the timestamps of a recording: rate, jitter, loss, skew.

*Design.* Frame ``k`` of a steady device comes at ``start + k * period`` plus a delay. The period is the one near the
median interval at which the timestamps of the first frames agree best in phase (a periodogram, which losses do not
disturb). Rounding then numbers the frames, and a line through (number, timestamp) gives a better period; the stretch
that is fitted doubles until it holds all frames, so that a small error of the period never adds up to a whole frame.
Numbers that no frame has are losses, and the residuals are the jitter. A frame is late, never early: a line through the
earliest frames tells the numbers apart, whatever the jitter, where the period is known, as that of sound is from its
packets. Where it is not, and the timestamps agree on none better than by chance, no frame counts as lost. Chance makes
few frames agree better than many, and frames that come together agree as one.

*Invariants.* Numbers increase from frame to frame. Fewer than three frames have no period and no jitter.

*Complexity.* O(frames).
"""

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = ["SURE", "Timing", "measure_timing"]

MIN_FRAMES = 3
FIRST_FRAMES = 256
SEARCH = np.linspace(0.58, 1.03, 4_001)
"""Periods to look at, over the mean interval: losses make it longer, and half a period would agree as well."""
AGREEMENT = 0.25
"""Below it, jitter hides the period."""
CHANCE = 3.3
"""What chance alone reaches, times the root of the number of instants, from 20 to 256 of them."""
APART = 0.25
"""Mean intervals below which frames come together: strong jitter delivers them in bunches."""
CLEAR = 0.5
"""Below it, the period is taken from elsewhere, where it is known."""
EARLIEST = 0.02
"""Share of the frames that may be earlier than the line: some numbers may be wrong until all frames are fitted."""
BEHIND = 0.25
"""How far the line is behind the earliest frames at most, in periods: one that seems early moves those before it."""
LAST = 8
"""Frames at the end that count as late, not as behind a loss: no later one tells."""
LEAST_STRETCH = 1.05
"""By how much the mean interval of packets of one length may be shorter than their period, by chance."""
SURE = 3.0
"""Standard errors beyond which a skew is reported; a short recording cannot tell a small one from jitter."""


@attrs.frozen
class Timing:
    """Timing that was measured.

    Attributes:
        frames: how many came.
        duration_s: from the first to the last.
        period_s: seconds from a frame to the next; 0: too few frames.
        jitter_s: standard deviation of the delay.
        loss: share of the frames that is missing.
        loss_run: mean number of successive frames that are missing together; 1 where none is.
        period_error_s: standard error of ``period_s``.
    """

    frames: int
    duration_s: float
    period_s: float
    jitter_s: float
    loss: float
    loss_run: float
    period_error_s: float

    def skew_ppm(self, nominal_period_s: float) -> float:
        """Return by how much the clock of the device is faster than ours; 0: not certain.

        Args:
            nominal_period_s: the period on the clock of the device.
        """
        off_s = nominal_period_s - self.period_s
        return off_s / self.period_s * 1e6 if abs(off_s) > SURE * self.period_error_s else 0.0


def measure_timing(timestamps_s: Sequence[float], *, nominal_period_s: float = 0.0) -> Timing:
    """Return the timing of frames with these timestamps, in order.

    Args:
        timestamps_s: in order.
        nominal_period_s: the period on the clock of the device; 0: not known.
    """
    stamps = np.asarray(timestamps_s, np.float64)
    duration_s = float(stamps[-1] - stamps[0]) if len(stamps) else 0.0
    if len(stamps) < MIN_FRAMES or duration_s <= 0.0:
        return Timing(len(stamps), duration_s, 0.0, 0.0, 0.0, 1.0, 0.0)
    numbers = np.arange(len(stamps), dtype=np.float64)
    period, start, agreement = _find_period(stamps[:FIRST_FRAMES])
    length = min(FIRST_FRAMES, len(stamps))
    # losses make the mean interval longer; where it is much shorter, packets have several lengths
    by_earliest = 0 < nominal_period_s * (len(stamps) - 1) <= LEAST_STRETCH * duration_s and agreement < CLEAR
    if by_earliest:
        period = nominal_period_s
        start = _find_earliest(stamps[:length], period, numbers[:length])
    elif agreement < max(AGREEMENT, CHANCE / math.sqrt(_count_instants(stamps[:FIRST_FRAMES]))):
        length = 0
    while length:
        part, order = stamps[:length], np.arange(length)
        # number minus index never decreases; a frame is late, never early, so the one after it decides
        steps = np.round((part - start) / period) - order
        if by_earliest:
            steps[-LAST:] = steps[-LAST:].min()
        numbers = np.minimum.accumulate(steps[::-1])[::-1] + order
        if length == len(stamps):
            break
        period, start = (float(it) for it in np.polyfit(numbers, part, 1))
        earliest = _find_earliest(part, period, numbers)
        start = earliest if by_earliest else min(start, earliest + BEHIND * period)
        length = min(2 * length, len(stamps))
    period, start = (float(it) for it in np.polyfit(numbers, stamps, 1))
    residuals = stamps - (start + period * numbers)
    gaps = np.diff(numbers) - 1
    missing, runs = float(gaps.sum()), int(np.count_nonzero(gaps))
    jitter_s = float(residuals.std(ddof=2))
    return Timing(
        frames=len(stamps),
        duration_s=duration_s,
        period_s=period,
        jitter_s=jitter_s,
        loss=missing / (missing + len(stamps)),
        loss_run=missing / runs if runs else 1.0,
        period_error_s=jitter_s / (float(numbers.std()) * math.sqrt(len(stamps))),
    )


def _find_earliest(stamps: NDArray[np.float64], period: float, numbers: NDArray[np.float64]) -> float:
    """Return the instant of number 0 on a line through the earliest frames."""
    return float(np.quantile(stamps - period * numbers, EARLIEST))


def _count_instants(stamps: NDArray[np.float64]) -> float:
    """Return how many instants say as much as these timestamps, some of which come together."""
    intervals = np.diff(stamps)
    firsts = np.flatnonzero(intervals >= APART * intervals.mean()) + 1
    together = np.diff(np.concatenate(([0], firsts, [len(stamps)])))
    return len(stamps) ** 2 / float((together**2).sum())


def _find_period(stamps: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return a first period, an instant that is in phase, and how well the timestamps agree, from 0 to 1."""
    since = stamps - stamps[0]
    periods = float(np.diff(stamps).mean()) * SEARCH
    agreement = np.exp(2j * np.pi * since / periods[:, None]).mean(axis=1)
    best = int(np.abs(agreement).argmax())
    phase = float(np.angle(agreement[best])) / (2 * np.pi)
    return float(periods[best]), float(stamps[0]) + phase * float(periods[best]), float(np.abs(agreement[best]))
