"""What a device knows of the batchers that share it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from streaminfer.batching.device.claim import Claim
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._ticket_cy import Execution, Ticket

__all__ = ["DeviceMember", "Residence"]


class Residence(Protocol):
    """How one model comes into the memory of its device; equal for several batchers of one model, which share it."""

    source: str
    """Name of the model."""

    memory_bytes: int
    """What it takes."""

    def __hash__(self) -> int:
        """By the model."""

    def load(self, leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Begin to load it when others have left.

        ``done`` is told when that ended, whether it is there, and how many of the others, the last ones, have not left.
        """


class DeviceMember(Protocol):
    """Dispatcher of one batcher, as the device sees it."""

    @property
    def residence(self) -> Residence | None:
        """How the model comes into memory; ``None``: it is always there."""

    claim: Claim
    """What a preemptive device knows of the model."""

    source: str
    """Name of the model; several may have the same."""

    def __hash__(self) -> int:
        """By identity."""

    @property
    def is_waiting(self) -> bool:
        """Whether a request is queued and a worker of its own is free."""

    @property
    def runs_inline(self) -> bool:
        """Whether a batch runs on the event loop, within :meth:`grant`."""

    def propose(self, now_ns: int) -> Decision | None:
        """Return the next batch, if any; expires and rejects what cannot be on time."""

    def outlook(self, now_ns: int, batch: Sequence[Ticket]) -> Outlook | None:
        """Return what is known of queue and model."""

    def expected_ns(self, execution: Execution) -> int:
        """Return how long a batch is expected to take alone; 0: not known."""

    def grant(self, batch: Sequence[Ticket], decision: Decision, now_ns: int) -> None:
        """Send a batch: it calls :meth:`Device.begin` if it begins."""

    def settle(self) -> None:
        """Set the timer for what is left."""
