"""Per-request work of an open loop: sends each request, and records its send time, end and outcome.

The module is compiled, because at 20,000 requests per second it competes with the service for the processor.
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
    """Sends the requests of a schedule when they are due, and records when each was sent and completed.

    Args:
        call: sends the request with a number; it is awaited in one task per request.
        begin: begins a request and calls back when it completes, so it needs no task; ``None``: use ``call``.
        due_ns: due times on the clock, ascending.
        errors: errors that count as the failure of a request.
        on_result: gets the number of a request and the result of its call.
        clock: returns monotonic nanoseconds.
        end: called with ``None`` when the last request has ended, and with any error that is not in ``errors``.

    Attributes:
        sent_ns: send time of each request; 0 if it was not sent.
        completed_ns: time of each response; 0 without a response.
        failures: errors of failed requests, by number. All errors of a class share the first one, because an error can
            hold the inputs of its request.
        sent: number of requests sent.
        pending: calls in flight, by number: an object with ``cancel``, or ``None`` while ``begin`` runs.
        cancelling: whether the run cancels its requests; a request cancelled that way does not count as failed.
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
        self._first_errors: dict[type[BaseException], BaseException] = {}
        self.pending: dict[int, Any] = {}
        self.sent = 0
        self.cancelling = False
        self._call, self._begin, self._errors = call, begin, errors
        self._on_result, self.clock, self._end = on_result, clock, end

    def send_due(self, create_task: Callable[[Any], asyncio.Task[None]], now_ns: int) -> int:
        """Send the requests that are due; return the due time of the next one, or 0 after the last."""
        number = self.sent
        begin = self._begin
        while number < self._count and self._due[number] <= now_ns:
            if begin is not None:
                self._start(number, begin)
            else:
                task = create_task(self._run(number))
                if not task.done():  # an eager task may be done already
                    self.pending[number] = task
            number += 1
        self.sent = number
        return self._due[number] if number < self._count else 0

    async def _run(self, number: int) -> None:
        self._sent_at[number] = self.clock()
        try:
            result = await self._call(number)
        except BaseException as error:  # noqa: BLE001 - recorded as a failure, or raised by the run
            self.end(number, None, error)
        else:
            self.end(number, result, None)

    def _start(self, number: int, begin: Callable[..., Any]) -> None:
        self.pending[number] = None  # the request may complete before `begin` returns
        self._sent_at[number] = self.clock()
        try:
            call = begin(number, partial(self.end, number))
        except BaseException as error:  # noqa: BLE001 - as above
            self.end(number, None, error)
        else:
            if number in self.pending:
                self.pending[number] = call

    def end(self, number: int, result: Any, error: BaseException | None) -> None:
        """Record the end of a request.

        Args:
            number: number of the request.
            result: result of its call.
            error: error of its call; ``None`` if it succeeded.
        """
        if error is None:
            self._completed_at[number] = self.clock()
            if self._on_result is not None:
                try:
                    self._on_result(number, result)
                except BaseException as raised:  # noqa: BLE001 - raised by the run
                    self._end(raised)
        elif isinstance(error, asyncio.CancelledError):
            if not self.cancelling:  # the service itself cancelled it
                self._fail(number, error)
        elif isinstance(error, self._errors):
            self._fail(number, error)
        else:
            self._end(error)
        self.pending.pop(number, None)
        if not self.pending and self.sent == self._count:
            self._end(None)

    def _fail(self, number: int, error: BaseException) -> None:
        self.failures[number] = self._first_errors.setdefault(type(error), error).with_traceback(None)
