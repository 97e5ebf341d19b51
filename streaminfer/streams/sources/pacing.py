"""Pace of a source: a file played in real time, and a rate that no stream exceeds."""

__all__ = ["Pacer", "RateLimiter"]

MAX_LAG_NS = 200_000_000  # a later frame was not decoded slowly: its reader waited, and playback waits with it
ROUNDING_NS = 1_000_000  # containers round timestamps to milliseconds


class Pacer:
    """Instants at which the items of a file are due when it is played in real time."""

    def __init__(self) -> None:
        self._start_ns: int | None = None

    def due_ns(self, media_ns: int, now_ns: int) -> int:
        """Return when an item at this position is due; what is far behind moves the rest of the file with it."""
        if self._start_ns is None or now_ns - self._start_ns - media_ns > MAX_LAG_NS:
            self._start_ns = now_ns - media_ns
        return self._start_ns + media_ns


class RateLimiter:
    """Choice of frames so that there are at most ``rate`` per second of the medium, evenly."""

    def __init__(self, rate: float) -> None:
        self._period_ns = round(1e9 / rate)
        self._next_ns: int | None = None

    def admits(self, media_ns: int, *, due: bool = False) -> bool:
        """Whether to take the frame at this position, and always where it is ``due``; positions never go back."""
        if self._next_ns is None or due:
            self._next_ns = media_ns
        elif media_ns < self._next_ns - ROUNDING_NS:
            return False
        self._next_ns += self._period_ns
        if self._next_ns <= media_ns:  # after a gap: no burst to catch up
            self._next_ns = media_ns + self._period_ns
        return True
