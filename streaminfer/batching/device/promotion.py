"""Batches of a device's background that have used up their patience: they go on at the usual priority."""

import asyncio
from collections.abc import Callable
from contextvars import Context

from streaminfer.batching.device.member import DeviceMember
from streaminfer.batching.queue._ticket_cy import NEVER, Execution

__all__ = ["Promotions"]


class Promotions:
    """Timers of the batches that run in the background of one device.

    A batch is *promoted* when half of the time from its begin to its earliest deadline has passed, or ``max_wait_ns``
    where it has none. So no other process, and no foreground, keeps a core from the background for good.

    Args:
        max_wait_ns: until a batch without a deadline is promoted.
        count: called with the model of each batch that is promoted.
    """

    def __init__(self, max_wait_ns: int, count: Callable[[DeviceMember], object]) -> None:
        self._max_wait_ns = max_wait_ns
        self._count = count
        self._timers: dict[Execution, asyncio.TimerHandle] = {}

    def begin(self, loop: asyncio.AbstractEventLoop, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a batch of the background begins."""
        deadline_ns = min(ticket.deadline_ns for ticket in execution.tickets)
        patience_ns = self._max_wait_ns if deadline_ns == NEVER else max(deadline_ns - now_ns, 0) // 2
        self._timers[execution] = loop.call_later(
            patience_ns / 1e9, self._promote, execution, member, context=Context()
        )

    def end(self, execution: Execution) -> None:
        """Note that a batch ended."""
        timer = self._timers.pop(execution, None)
        if timer is not None:
            timer.cancel()

    def forget(self) -> None:
        """Forget the batches that run: their loop was closed."""
        self._timers.clear()

    def _promote(self, execution: Execution, member: DeviceMember) -> None:
        del self._timers[execution]
        self._count(member)
        member.claim.raise_running()
