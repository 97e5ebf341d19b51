"""Deadlines of services that do not enforce them: one timer per call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from streaminfer._runtime.closing import close_unread
from streaminfer.errors import Closed, DeadlineExceeded

__all__ = ["DeadlineCalls"]

T = TypeVar("T")


class DeadlineCalls(dict["asyncio.Future[Any]", None]):
    """Calls of one event loop that have not completed, in order, including those of cancelled callers."""

    async def end_within(self, timeout_s: float | None, response: Awaitable[T], name: str) -> T:
        """Await a response; cancel the call when the time is up or the caller is cancelled.

        Args:
            timeout_s: seconds ≥ 0; ``None``: no limit.
            response: awaitable of the service's ``call``.
            name: name of the service in messages.

        Raises:
            DeadlineExceeded: the call took longer.
            Closed: the call was cancelled, but not by its caller.
        """
        call = asyncio.ensure_future(response)
        self[call] = None
        call.add_done_callback(self._forget)
        try:
            await asyncio.wait({call}, timeout=timeout_s)
        except asyncio.CancelledError:
            _abandon(call)
            raise
        if not call.done():
            _abandon(call)
            raise DeadlineExceeded(f"{name} did not answer within {timeout_s:.6f} s")
        if call.cancelled():
            raise Closed(f"{name} was stopped before it could answer")
        try:
            return call.result()
        finally:
            del call, response  # they hold the error, whose traceback holds this frame, and thus the inputs

    def _forget(self, call: asyncio.Future[T]) -> None:
        self.pop(call, None)
        if not call.cancelled():
            call.exception()  # marks the error as retrieved: the caller may have left


def _abandon(call: asyncio.Future[Any]) -> None:
    """Cancel a call; close its outputs if it has ended already, or ends with a response despite the cancellation."""
    call.cancel()
    call.add_done_callback(close_unread)
