"""What an open loop does per request: the task, the instants of its send and its end, and what became of it.

Compiled, since at 20,000 requests a second it competes with the service for the processor.
"""

from __future__ import annotations

import asyncio
from array import array
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["DueRequests"]


class DueRequests:
    """Sends those requests of a schedule that are due, and notes when each was sent and when it ended.

    Args:
        call: sends the request of a number, and is awaited in a task of its own.
        begin: begins it, and tells of its end, so that it needs no task; ``None``: it is awaited.
        due_ns: instants of the clock, ascending.
        errors: with which a request may end.
        on_result: gets the number of a request and what its call returned.
        clock: returns monotonic nanoseconds.
        end: is called when the last one has ended, and with any other error.

    Attributes:
        sent_ns: when each request was sent; 0: it was not.
        completed_ns: when each was answered; 0: it was not.
        failures: what the others raised; the first error of each class stands for all of it, since one can hold the
            inputs of its request.
        sent: how many were sent.
        pending: those in flight, by number: each has ``cancel``, or is ``None`` while it is begun.
        cancelling: requests are being cancelled, and do not fail by that.
        clock: as given.
    """

    def __init__(
        self,
        call: Callable[[int], Awaitable[Any]],
        begin: Callable[[int, Callable[[Any, BaseException | None], None]], Any] | None,
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
        self._firsts: dict[type[BaseException], BaseException] = {}
        self.pending: dict[int, Any] = {}
        self.sent = 0
        self.cancelling = False
        self._call, self._begin, self._errors = call, begin, errors
        self._on_result, self.clock, self._end = on_result, clock, end

    def send_due(self, create_task: Callable[[Any], asyncio.Task[None]], now_ns: int) -> int:
        """Send what is due at an instant; return when the next one is, or 0."""
        number = self.sent
        begin = self._begin
        while number < self._count and self._due[number] <= now_ns:
            if begin is not None:
                self._start(number, begin)
            else:
                task = create_task(self._run(number))
                if not task.done():  # an eager task may be
                    self.pending[number] = task
            number += 1
        self.sent = number
        return self._due[number] if number < self._count else 0

    async def _run(self, number: int) -> None:
        self._sent_at[number] = self.clock()
        try:
            result = await self._call(number)
        except BaseException as error:  # noqa: BLE001 - kept, or raised by the run
            self.end(number, None, error)
        else:
            self.end(number, result, None)

    def _start(self, number: int, begin: Callable[..., Any]) -> None:
        self.pending[number] = None  # its end may be told before `begin` returns
        self._sent_at[number] = self.clock()
        try:
            call = begin(number, partial(self.end, number))
        except BaseException as error:  # noqa: BLE001 - as above
            self.end(number, None, error)
        else:
            if number in self.pending:
                self.pending[number] = call

    def end(self, number: int, result: Any, error: BaseException | None) -> None:
        """Note how a request ended.

        Args:
            number: of the request.
            result: of its call.
            error: what it raised; ``None``: nothing.
        """
        if error is None:
            self._completed_at[number] = self.clock()
            if self._on_result is not None:
                try:
                    self._on_result(number, result)
                except BaseException as raised:  # noqa: BLE001 - raised by the run
                    self._end(raised)
        elif isinstance(error, asyncio.CancelledError):
            if not self.cancelling:  # the service's own
                self._fail(number, error)
        elif isinstance(error, self._errors):
            self._fail(number, error)
        else:
            self._end(error)
        self.pending.pop(number, None)
        if not self.pending and self.sent == self._count:
            self._end(None)

    def _fail(self, number: int, error: BaseException) -> None:
        self.failures[number] = self._firsts.setdefault(type(error), error).with_traceback(None)
