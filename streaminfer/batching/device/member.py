"""Interfaces of a device to the batchers that share it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from streaminfer.batching.device.claim import Claim
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._ticket_cy import Execution, Ticket

__all__ = ["DeviceMember", "Residence"]


class Residence(Protocol):
    """Presence of one model in the memory of its device; equal for several batchers that share the model."""

    source: str
    """Name of the model."""

    memory_bytes: int
    """Bytes of the model."""

    def __hash__(self) -> int:
        """Return the hash of the model."""

    def load(self, leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Begin to load the model when the models in ``leaving`` have left.

        ``done`` is called at the end with the instant, whether the model is loaded, and how many of ``leaving``, the
        last ones, have not left.
        """


class DeviceMember(Protocol):
    """Dispatcher of one batcher, as the device uses it."""

    @property
    def residence(self) -> Residence | None:
        """Presence of the model in memory; ``None``: it is always there."""

    claim: Claim
    """Claim of the model on a preemptive device."""

    source: str
    """Name of the model; several may have the same."""

    def __hash__(self) -> int:
        """Return the hash of the object."""

    @property
    def is_waiting(self) -> bool:
        """Whether a request is queued and a worker of the batcher is free."""

    @property
    def runs_inline(self) -> bool:
        """Whether a batch runs on the event loop, within :meth:`grant`."""

    def propose(self, now_ns: int) -> Decision | None:
        """Return the next batch, if any; expire and reject requests that cannot be on time."""

    def outlook(self, now_ns: int, batch: Sequence[Ticket]) -> Outlook | None:
        """Return the policy's knowledge of queue and model."""

    def expected_ns(self, execution: Execution) -> int:
        """Return the expected nanoseconds of a batch alone; 0: unknown."""

    def grant(self, batch: Sequence[Ticket], decision: Decision, now_ns: int) -> None:
        """Send a batch; call :meth:`Device.begin` if it begins."""

    def settle(self) -> None:
        """Set the timer for the remaining requests."""
