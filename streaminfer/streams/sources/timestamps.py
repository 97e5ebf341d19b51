"""Repair of the timestamps of a medium, and the capture instants and the playback pace that follow from them.

*Design.* A medium has its own clock: its timestamps start anywhere, wrap, repeat, jump, or are missing. `stamp` maps
each timestamp to one media timeline, which starts at 0 and never goes back: ``media = timestamp + shift``. A jump
changes the shift, so that the timeline continues by the time that passed. A live medium may repeat a timestamp: a few
equal ones are pictures of one instant. More of them are no timestamps, and the timeline continues by the time that
passed.

A live item was captured at ``end + delay``. The end is ``media`` plus the duration of the item, because packets of
sound differ in length and each is sent when it is full. The delay is the smallest ``arrival - end`` of the last two
windows, to which the network added least; so a frame that waited behind a lost packet keeps its true age. Older windows
do not count, because the two clocks drift apart: 100 ppm are 1 ms in 10 s. No capture instant is later than the arrival
or earlier than the previous capture instant.

*Invariants.* ``media_ns`` and ``captured_ns`` never decrease; ``captured_ns <= arrival_ns`` unless arrivals go back.

*Complexity.* Constant per item.
"""

from fractions import Fraction

import attrs

from streaminfer._internal.units import NEVER_NS

__all__ = ["Pacer", "Stamp", "TimestampRepair"]

WINDOW_NS = 5_000_000_000
BACKWARD_JUMP_NS = 500_000_000  # smaller steps back are reordered packets, which pass
FORWARD_JUMP_NS = 5_000_000_000  # a burst after a stall may run ahead of its arrival
FILE_GAP_NS = 60_000_000_000  # files have no arrivals to compare with; slides may last a minute
MAX_LAG_NS = 200_000_000  # a frame that is later than this had a reader that waited, so playback waits too
MAX_REPEATS = 2  # of a live timestamp: fields or slices of a picture
WRAPS = (1 << 32, 1 << 33)
"""Ticks after which timestamps start over: RTP, MPEG transport streams."""


@attrs.frozen(slots=True)
class Stamp:
    """Position and capture instant of an item.

    Attributes:
        media_ns: position on the timeline of the medium, from its first item.
        captured_ns: capture instant of the end of the item, on the clock of the arrivals.
        discontinuity: the timestamps jumped, or the connection is new.
    """

    media_ns: int
    captured_ns: int
    discontinuity: bool


class TimestampRepair:
    """Timeline of one medium.

    Args:
        live: arrivals follow the clock of the medium; else a file is read at any speed.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._last: Stamp | None = None
        self._last_arrival_ns = 0
        self._shift_ns: int | None = None
        self._restarted = False
        self._length_ns = 0  # of the last item
        self._step_ns = 0
        self._pts: int | None = None
        self._repeats = 0  # of this timestamp
        self._first_repeat = (0, 0)  # position and arrival of the first item that had it
        self._delays: tuple[int | None, int] = (None, 0)
        self._window_end_ns = 0

    def restart(self) -> None:
        """Continue with a medium with timestamps that are unrelated to the earlier ones."""
        self._shift_ns = self._pts = None
        self._restarted = self._last is not None

    def forget_delays(self) -> None:
        """Begin a window with the next item and forget the earlier windows."""
        self._window_end_ns = -NEVER_NS

    def stamp(self, pts: int | None, time_base: Fraction | None, duration_ns: int, arrival_ns: int) -> Stamp:
        """Return the stamp of the next item.

        Args:
            pts: its timestamp in ticks; ``None``: missing.
            time_base: seconds per tick; ``None``: as without a timestamp.
            duration_ns: how long it lasts; 0: unknown.
            arrival_ns: when it arrived.
        """
        last = self._last
        elapsed_ns = max(0, arrival_ns - self._last_arrival_ns) if last else 0
        step_ns = max(elapsed_ns, self._length_ns) if self._live else self._length_ns or self._step_ns
        next_ns = last.media_ns + step_ns if last else 0
        discontinuity, self._restarted = self._restarted, False
        self._repeats = self._repeats + 1 if pts is not None and pts == self._pts else 0
        if pts is None or time_base is None:
            media_ns = next_ns
        elif self._live and self._repeats > MAX_REPEATS:
            position_ns, first_arrival_ns = self._first_repeat
            media_ns = position_ns + arrival_ns - first_arrival_ns
        else:
            media_ns, has_jumped = self._find_position(pts, time_base, next_ns, elapsed_ns)
            discontinuity |= has_jumped
        if last is not None:
            media_ns = max(media_ns, last.media_ns)
            self._step_ns = (media_ns - last.media_ns) or self._step_ns
        end_ns = media_ns + duration_ns
        captured_ns = self._capture(end_ns, arrival_ns, discontinuity=discontinuity) if self._live else arrival_ns
        if last is not None:
            captured_ns = max(captured_ns, last.captured_ns)
        if not self._repeats:
            self._pts, self._first_repeat = pts, (media_ns, arrival_ns)
        self._last = Stamp(media_ns, captured_ns, discontinuity)
        self._last_arrival_ns = arrival_ns
        self._length_ns = duration_ns
        return self._last

    def _find_position(self, pts: int, time_base: Fraction, next_ns: int, elapsed_ns: int) -> tuple[int, bool]:
        """Return the position of a timestamp, and whether it jumped; after a jump, the next position follows."""
        seconds = 1_000_000_000 * time_base.numerator
        pts_ns = pts * seconds // time_base.denominator
        jump: int | None = 0
        if self._shift_ns is None:
            self._shift_ns = next_ns - pts_ns
        elif self._last is not None:
            jump = self._find_jump(pts_ns + self._shift_ns - self._last.media_ns, elapsed_ns, seconds, time_base)
            self._shift_ns = next_ns - pts_ns if jump is None else self._shift_ns + jump
        return pts_ns + self._shift_ns, jump is None

    def _find_jump(self, step_ns: int, elapsed_ns: int, seconds: int, time_base: Fraction) -> int | None:
        """Return what a wrap adds to the timeline, 0 for a plausible step, or ``None`` for a jump."""
        limit_ns = elapsed_ns + FORWARD_JUMP_NS if self._live else FILE_GAP_NS
        if -BACKWARD_JUMP_NS <= step_ns <= limit_ns:
            return 0
        for wrap in WRAPS:
            wrap_ns = wrap * seconds // time_base.denominator
            if -BACKWARD_JUMP_NS <= step_ns + wrap_ns <= limit_ns:
                return wrap_ns
        return None

    def _capture(self, end_ns: int, arrival_ns: int, *, discontinuity: bool) -> int:
        delay_ns = arrival_ns - end_ns
        previous, smallest = self._delays
        is_first = discontinuity or self._last is None
        if is_first or arrival_ns >= self._window_end_ns:
            follows = not is_first and arrival_ns < self._window_end_ns + WINDOW_NS
            previous, smallest = smallest if follows else None, delay_ns
            self._window_end_ns = arrival_ns + WINDOW_NS
        else:
            smallest = min(smallest, delay_ns)
        self._delays = previous, smallest
        return end_ns + (smallest if previous is None else min(previous, smallest))


class Pacer:
    """Instants at which the items of a file are due when it is played in real time."""

    def __init__(self) -> None:
        self._start_ns: int | None = None

    def due_ns(self, media_ns: int, now_ns: int) -> int:
        """Return when an item at this position is due; an item that is far behind delays the rest of the file too."""
        if self._start_ns is None or now_ns - self._start_ns - media_ns > MAX_LAG_NS:
            self._start_ns = now_ns - media_ns
        return self._start_ns + media_ns
