"""Calls of services that do not end requests at their deadline themselves: one timer each does it here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from streaminfer.errors import Closed, DeadlineExceeded
from streaminfer.request import Response

__all__ = ["DeadlineCalls"]


class DeadlineCalls(set["asyncio.Task[Response]"]):
    """The calls that are going on, those included that nobody waits for any more; of one event loop."""

    async def end_within(self, timeout_s: float | None, answer: Coroutine[Any, Any, Response], name: str) -> Response:
        """Awaits an answer, and cancels what makes it when the time is up or the caller is cancelled.

        Args:
            timeout_s: seconds ≥ 0; ``None``: any time.
            answer: what the service's ``call`` returned.
            name: of the service, for messages.

        Raises:
            DeadlineExceeded: it took longer.
            Closed: somebody else cancelled it.
        """
        call = asyncio.ensure_future(answer)
        self.add(call)
        call.add_done_callback(self._forget)
        try:
            await asyncio.wait({call}, timeout=timeout_s)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not call.done():
            call.cancel()
            raise DeadlineExceeded(f"{name} did not answer within {timeout_s:.6f} s")
        if call.cancelled():
            raise Closed(f"{name} was stopped before it could answer")
        try:
            return call.result()
        finally:
            del call  # an error whose traceback holds this frame would keep the request's inputs alive

    def _forget(self, call: asyncio.Task[Response]) -> None:
        self.discard(call)
        if not call.cancelled():
            call.exception()  # nobody else may be there to take it
