"""Stakes of models that do not fit in a device's memory together: the gain of a load, and its cost.

*Design*. A load often takes a multiple of a time limit. It then saves no request that waits for it, and loses the
requests that arrive for an evicted model until that one is loaded again. Such a load is *in vain* if the arriving model
expects no more requests, by rate and weight, than those that leave would lose. It is done nevertheless when the model
was passed over for long, so that each model is served from time to time.

*Complexity*. O(models that leave).
"""

import math
from collections.abc import Iterable

import attrs

from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.queue._ticket_cy import NEVER

__all__ = ["Stake", "is_in_vain"]


@attrs.frozen
class Stake:
    """Stake of one model.

    Attributes:
        outlook: outlook of its policy; ``None``: it has none, or its batcher has stopped.
        weight: value of a request on time.
        load_ns: expected nanoseconds of its load; 0: unknown.
        is_waiting: it has a batch to send.
        now_ns: the present instant.
    """

    outlook: Outlook | None
    weight: float
    load_ns: int
    is_waiting: bool
    now_ns: int

    @property
    def needed_ns(self) -> float:
        """Instant at which its next batch has to start."""
        if self.outlook is None:
            return self.now_ns if self.is_waiting else math.inf
        deadlines = self.outlook.deadlines
        first_ns = deadlines[0] if deadlines.size else self.now_ns + self.outlook.gaps_ns[0] + self.outlook.limit_ns
        return float(first_ns - self.outlook.durations[1])

    @property
    def worth(self) -> float:
        """Value of its expected requests, per nanosecond."""
        return 0.0 if self.outlook is None else self.weight / self.outlook.gaps_ns[0]

    def loses_while(self, other_load_ns: int) -> bool:
        """Return whether its requests expire if it leaves for another model and is loaded again afterwards."""
        if self.outlook is None:
            return False
        return bool(self.outlook.limit_ns < other_load_ns + self.load_ns + self.outlook.durations[1])

    @property
    def is_late(self) -> bool:
        """Whether the whole queue expires during its load."""
        if self.outlook is None or any(ticket.deadline_ns == NEVER for ticket in self.outlook.tickets):
            return False
        return bool(self.outlook.deadlines[-1] < self.now_ns + self.load_ns + self.outlook.durations[1])


def is_in_vain(arriving: Stake, leaving: Iterable[Stake]) -> bool:
    """Return whether a load that is not overdue costs more than it gains.

    Args:
        arriving: the model to load, with a queue.
        leaving: the models that have to leave for it.
    """
    if not arriving.is_late:
        return False
    lost = sum(other.worth for other in leaving if other.loses_while(arriving.load_ns))
    return lost > 0.0 and arriving.worth <= lost
