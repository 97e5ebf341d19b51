"""Time limits of refreshes and tier reads, derived from the durations of recent computations of one service.

A refresh may take four times the duration of the slowest recent computation, at least 1 s; 10 s if no duration is
known. Each newer computation reduces the slowest duration by a sixteenth.

The leader of a flight grants the tiers the time that the computation can spare. A request with ``left`` nanoseconds
grants ``min(1 s, left / 2, left - 9/8 slowest)``. If ``9/8 slowest`` is more than is left, only a tier can be in time,
and the third term is dropped. A caller that joins the flight shortens the wait to its own grant, unless a computation
would be too late for that caller anyway. If a computation was too late after the tiers had used their whole grant, the
next read skips the tiers once, so that its computation measures the current duration.
"""

from streaminfer.caching.table._slots_cy import NEVER

__all__ = ["LONGEST_READ_NS", "ReadBudget"]

LONGEST_READ_NS = 1_000_000_000
_REFRESH_S = 10.0
_MIN_REFRESH_S = 1.0
_REFRESH_FACTOR = 4e-9  # of nanoseconds


class ReadBudget:
    """Time limits of tier reads and refreshes of one service; values that tiers lack can still be computed in time."""

    def __init__(self) -> None:
        self._slowest_ns = 0
        self._skips_next = False

    def grant_ns(self, left_ns: int | None) -> int:
        """Return the nanoseconds that the tiers may take; 0: skip the tiers."""
        if left_ns is None:
            return LONGEST_READ_NS
        if self._skips_next:
            self._skips_next = False
            return 0
        half_ns = left_ns // 2  # used if it is too late to compute, because only a tier can help then
        return min(LONGEST_READ_NS, self.spare_ns(left_ns) or half_ns)

    def spare_ns(self, left_ns: int | None) -> int:
        """Return the nanoseconds that a request can wait and still be computed in time; 0: there is no time to wait."""
        if left_ns is None:
            return NEVER
        return max(min(left_ns // 2, left_ns - self._slowest_ns - (self._slowest_ns >> 3)), 0)

    def refresh_s(self) -> float:
        """Return the seconds that a refresh may take."""
        return max(_REFRESH_FACTOR * self._slowest_ns, _MIN_REFRESH_S) if self._slowest_ns else _REFRESH_S

    def computed(self, duration_ns: int) -> None:
        """Note the duration of a successful computation."""
        self._slowest_ns = max(duration_ns, self._slowest_ns - (self._slowest_ns >> 4))

    def was_late(self, granted_ns: int, read_ns: int) -> None:
        """Note that a computation missed its deadline after the tiers took ``read_ns`` of ``granted_ns``."""
        self._skips_next = read_ns >= granted_ns > 0
