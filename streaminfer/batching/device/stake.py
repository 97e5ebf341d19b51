"""What models have at stake where they do not fit in a device's memory together: what a load saves, and what it costs.

*Design*. A load takes a multiple of a time limit, often. Then it saves no request that waits for it, and each request
that comes for a model that has left for it is lost until that one is back. Such a load is *in vain* where the model
that comes expects no more, by rate and weight, than those that leave would lose. It is done all the same when the model
was passed over for long, so that each model is served now and then.

*Complexity*. O(models that leave).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket

__all__ = ["Stake", "is_in_vain"]


@attrs.frozen
class Stake:
    """One model.

    Attributes:
        outlook: of its policy; ``None``: it has none, or has stopped.
        weight: what a request on time is worth.
        load_ns: what loading it takes; 0: not known.
        is_waiting: it has a batch to send.
        now_ns: the present instant.
    """

    outlook: Outlook | None
    weight: float
    load_ns: int
    is_waiting: bool
    now_ns: int

    @classmethod
    def of(
        cls,
        member: DeviceMember,
        name: str | None,
        weights: Mapping[str, float],
        load_ns: int,
        now_ns: int,
        batch: Sequence[Ticket],
    ) -> "Stake":
        """Return that of a batcher.

        Args:
            member: the batcher.
            name: of its model; ``None``: it has stopped.
            weights: of the device, by name.
            load_ns: what loading the model takes.
            now_ns: the present instant.
            batch: what it would send; empty: nothing.
        """
        if name is None:
            return cls(None, 1.0, load_ns, member.is_waiting, now_ns)
        return cls(member.outlook(now_ns, batch), weights.get(name, 1.0), load_ns, member.is_waiting, now_ns)

    @property
    def needed_ns(self) -> float:
        """When its next batch has to start."""
        if self.outlook is None:
            return self.now_ns if self.is_waiting else math.inf
        deadlines = self.outlook.deadlines
        first_ns = deadlines[0] if deadlines.size else self.now_ns + self.outlook.gaps_ns[0] + self.outlook.limit_ns
        return float(first_ns - self.outlook.durations[1])

    @property
    def worth(self) -> float:
        """What its expected requests are worth, per nanosecond."""
        return 0.0 if self.outlook is None else self.weight / self.outlook.gaps_ns[0]

    def loses_while(self, other_load_ns: int) -> bool:
        """Return whether its requests expire while it leaves for another model and comes back."""
        if self.outlook is None:
            return False
        return bool(self.outlook.limit_ns < other_load_ns + self.load_ns + self.outlook.durations[1])

    @property
    def is_late(self) -> bool:
        """Whether all that is queued expires while it is loaded."""
        if self.outlook is None or any(ticket.deadline_ns == NEVER for ticket in self.outlook.tickets):
            return False
        return bool(self.outlook.deadlines[-1] < self.now_ns + self.load_ns + self.outlook.durations[1])


def is_in_vain(arriving: Stake, leaving: Iterable[Stake]) -> bool:
    """Return whether a load that is not overdue costs more than it brings.

    Args:
        arriving: the model that would be loaded, with a queue.
        leaving: those that have to leave for it.
    """
    if not arriving.is_late:
        return False
    lost = sum(other.worth for other in leaving if other.loses_while(arriving.load_ns))
    return lost > 0.0 and arriving.worth <= lost
