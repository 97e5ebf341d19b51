"""Timing of a device from the timestamps of a recording: rate, jitter, loss, skew.

*Design.* Frame ``k`` of a steady device comes at ``start + k * period`` plus a delay. The first estimate of the period
is the value near the mean interval at which the first timestamps agree best in phase: a periodogram, which losses do
not disturb. Rounding then numbers the frames, and a line through (number, timestamp) gives a better period. The fitted
stretch doubles until it holds all frames, so a small error of the period never adds up to a whole frame. Missing
numbers are losses, and the residuals are the jitter.

If the period is known, as for packets of sound, a line through the earliest frames numbers them whatever the jitter,
because a frame is late, never early. If it is unknown, and the timestamps agree on no period better than by chance, no
frame counts as lost. By chance, few frames agree better than many, and frames that arrive together count as one.

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
"""Periods to try, as multiples of the mean interval: losses make it longer than the period. Half a period would agree
equally well, so the range excludes it."""
AGREEMENT = 0.25
"""Agreement below which jitter hides the period."""
CHANCE_AGREEMENT = 3.3
"""Agreement that chance alone reaches, times the root of the number of instants, for 20 to 256 instants."""
MIN_BUNCH_GAP = 0.25
"""Frames closer than this many mean intervals count as together: strong jitter delivers them in bunches."""
CLEAR = 0.5
"""Agreement below which the nominal period is used, if it is known."""
EARLIEST = 0.02
"""Share of the frames that may be earlier than the line: some numbers may be wrong until all frames are fitted."""
BEHIND = 0.25
"""Most periods by which the line is later than the earliest frames: a frame that seems early lowers the numbers of the
frames before it."""
LAST = 8
"""Frames at the end that count as late, not as following a loss, because no later frame decides between the two."""
LEAST_STRETCH = 1.05
"""Factor by which the mean interval of packets of equal length may be shorter than their period, by chance."""
SURE = 3.0
"""Standard errors beyond which a skew is reported; in a short recording, a small skew looks like jitter."""


@attrs.frozen
class Timing:
    """Measured timing.

    Attributes:
        frames: number of frames that arrived.
        duration_s: seconds from the first frame to the last.
        period_s: seconds from a frame to the next; 0 if there are too few frames.
        jitter_s: standard deviation of the delay.
        loss: share of the frames that are missing.
        loss_run: mean number of successive frames that are missing together; 1 if none is missing.
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
        """Return the skew of the device's clock in parts per million, positive if it is fast; 0 if not significant.

        Args:
            nominal_period_s: the period on the clock of the device.
        """
        off_s = nominal_period_s - self.period_s
        return off_s / self.period_s * 1e6 if abs(off_s) > SURE * self.period_error_s else 0.0


def measure_timing(timestamps_s: Sequence[float], *, nominal_period_s: float = 0.0) -> Timing:
    """Return the timing of frames from their timestamps.

    Args:
        timestamps_s: arrival times in seconds, ascending.
        nominal_period_s: the period on the clock of the device; 0: unknown.
    """
    stamps = np.asarray(timestamps_s, np.float64)
    duration_s = float(stamps[-1] - stamps[0]) if len(stamps) else 0.0
    if len(stamps) < MIN_FRAMES or duration_s <= 0.0:
        return Timing(len(stamps), duration_s, 0.0, 0.0, 0.0, 1.0, 0.0)
    numbers = np.arange(len(stamps), dtype=np.float64)
    period, start, agreement = _find_period(stamps[:FIRST_FRAMES])
    length = min(FIRST_FRAMES, len(stamps))
    # losses make the mean interval longer; if it is much shorter, packets have several lengths
    by_earliest = 0 < nominal_period_s * (len(stamps) - 1) <= LEAST_STRETCH * duration_s and agreement < CLEAR
    if by_earliest:
        period = nominal_period_s
        start = _find_earliest(stamps[:length], period, numbers[:length])
    elif agreement < max(AGREEMENT, CHANCE_AGREEMENT / math.sqrt(_count_instants(stamps[:FIRST_FRAMES]))):
        length = 0
    while length:
        known_stamps, indexes = stamps[:length], np.arange(length)
        # number minus index never decreases; because a frame is late, never early, later frames bound its number
        steps = np.round((known_stamps - start) / period) - indexes
        if by_earliest:
            steps[-LAST:] = steps[-LAST:].min()
        numbers = np.minimum.accumulate(steps[::-1])[::-1] + indexes
        if length == len(stamps):
            break
        period, start = (float(it) for it in np.polyfit(numbers, known_stamps, 1))
        earliest = _find_earliest(known_stamps, period, numbers)
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
    """Return the effective number of instants: timestamps that come together count as about one."""
    intervals = np.diff(stamps)
    starts = np.flatnonzero(intervals >= MIN_BUNCH_GAP * intervals.mean()) + 1
    bunch_sizes = np.diff(np.concatenate(([0], starts, [len(stamps)])))
    return len(stamps) ** 2 / float((bunch_sizes**2).sum())


def _find_period(stamps: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return a first estimate of the period, an instant in phase, and the agreement of the timestamps, from 0 to 1."""
    since = stamps - stamps[0]
    periods = float(np.diff(stamps).mean()) * SEARCH
    agreement = np.exp(2j * np.pi * since / periods[:, None]).mean(axis=1)
    best = int(np.abs(agreement).argmax())
    phase = float(np.angle(agreement[best])) / (2 * np.pi)
    return float(periods[best]), float(stamps[0]) + phase * float(periods[best]), float(np.abs(agreement[best]))
