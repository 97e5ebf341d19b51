"""Times that follow from how long the computations of one service take: for refreshes, and for tiers.

A refresh has four times what the slowest recent computation took, at least 1 s; 10 s before any is known. Each newer
computation takes a sixteenth off the slowest.

The leader of a flight grants the tiers what the computation can spare. A request that has ``left`` grants them
``min(1 s, left / 2, left - 9/8 slowest)``. Where that is more than is left, only a tier can be in time, and the third
term falls away. A caller who joins the flight shortens the wait to what it would have granted, unless a computation
would be too late for it in any case. Where a computation came too late after the tiers had used up all that they were
granted, they are passed over once: what is computed then says how long it takes.
"""

from streaminfer.caching.table._slots_cy import NEVER

__all__ = ["LONGEST_READ_NS", "ReadBudget"]

LONGEST_READ_NS = 1_000_000_000
_REFRESH_S = 10.0
_MIN_REFRESH_S = 1.0
_REFRESH_FACTOR = 4e-9  # of nanoseconds


class ReadBudget:
    """How long tiers may be asked, so that what they do not have can still be computed in time, and refreshes last."""

    def __init__(self) -> None:
        self._slowest_ns = 0
        self._pass_over = False

    def grant_ns(self, left_ns: int | None) -> int:
        """Nanoseconds for the tiers; 0: they are not asked."""
        if left_ns is None:
            return LONGEST_READ_NS
        if self._pass_over:
            self._pass_over = False
            return 0
        half_ns = left_ns // 2  # where it is too late to compute anyway, only a tier can help
        return min(LONGEST_READ_NS, self.spare_ns(left_ns) or half_ns)

    def spare_ns(self, left_ns: int) -> int:
        """Nanoseconds that a request can wait for tiers and then be computed in time; 0: it cannot be."""
        return max(min(left_ns // 2, left_ns - self._slowest_ns - (self._slowest_ns >> 3)), 0)

    def wait_ns(self, left_ns: int | None) -> int:
        """Nanoseconds to wait for another machine that computes; 0: there is no time."""
        if left_ns is None:
            return NEVER
        return self.spare_ns(left_ns)

    def refresh_s(self) -> float:
        """Return how long a refresh may take, seconds."""
        return max(_REFRESH_FACTOR * self._slowest_ns, _MIN_REFRESH_S) if self._slowest_ns else _REFRESH_S

    def computed(self, took_ns: int) -> None:
        """A computation ended well."""
        self._slowest_ns = max(took_ns, self._slowest_ns - (self._slowest_ns >> 4))

    def was_late(self, granted_ns: int, read_ns: int) -> None:
        """A computation did not end by the deadline; before it the tiers took ``read_ns`` of what was granted."""
        self._pass_over = read_ns >= granted_ns > 0
