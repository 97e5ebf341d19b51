"""What an open loop does per request: the task, the instants of its send and its end, and what became of it.

Compiled, since at 20,000 requests a second it competes with the service for the processor.
"""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["DueRequests"]


class DueRequests:
    """Sends those requests of a schedule that are due, each in a task, and notes when it was sent and when it ended.

    Args:
        call: sends the request of a number.
        due_ns: instants of the clock, ascending.
        errors: with which a request may end.
        on_result: gets the number of a request and what its call returned.
        clock: returns monotonic nanoseconds.
        end: is called when the last one has ended, and with any other error.

    Attributes:
        sent_ns: when each request was sent; 0: it was not.
        completed_ns: when each was answered; 0: it was not.
        failures: what the others raised.
        sent: how many were sent.
        pending: tasks of those in flight, by number.
        cancelling: requests are being cancelled, and do not fail by that.
        clock: as given.
    """

    def __init__(
        self,
        call: Callable[[int], Awaitable[Any]],
        due_ns: Sequence[int],
        errors: tuple[type[BaseException], ...],
        on_result: Callable[[int, Any], None] | None,
        clock: Callable[[], int],
        end: Callable[[BaseException | None], None],
    ) -> None:
        self.sent_ns = array("q", bytes(8 * len(due_ns)))
        self.completed_ns = array("q", bytes(8 * len(due_ns)))
        self._due, self._sent_at, self._completed_at = array("q", due_ns), self.sent_ns, self.completed_ns
        self._count = len(due_ns)
        self.failures: dict[int, BaseException] = {}
        self.pending: dict[int, asyncio.Task[None]] = {}
        self.sent = 0
        self.cancelling = False
        self._call, self._errors, self._on_result, self.clock, self._end = call, errors, on_result, clock, end

    def send_due(self, create_task: Callable[[Any], asyncio.Task[None]], now_ns: int) -> int:
        """Send what is due at an instant; return when the next one is, or 0."""
        number = self.sent
        while number < self._count and self._due[number] <= now_ns:
            task = create_task(self._run(number))
            if not task.done():  # an eager task may be
                self.pending[number] = task
            number += 1
        self.sent = number
        return self._due[number] if number < self._count else 0

    async def _run(self, number: int) -> None:
        self._sent_at[number] = self.clock()
        try:
            try:
                result = await self._call(number)
            except asyncio.CancelledError as error:
                if not self.cancelling:  # the service's own
                    self.failures[number] = error.with_traceback(None)
            except self._errors as error:
                self.failures[number] = error.with_traceback(None)
            else:
                self._completed_at[number] = self.clock()
                if self._on_result is not None:
                    self._on_result(number, result)
        except BaseException as error:  # noqa: BLE001 - raised by the run
            self._end(error)
        self.pending.pop(number, None)
        if not self.pending and self.sent == self._count:
            self._end(None)
