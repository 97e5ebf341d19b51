"""Service whose calls last until they are cancelled, and which records the cancelled calls."""

import asyncio

__all__ = ["Sleeper"]


class Sleeper:
    """Service whose calls last until they are cancelled.

    Attributes:
        cancelled: inputs of the cancelled calls, in the order of the cancellations.
    """

    def __init__(self):
        self.cancelled = []

    async def call(self, request):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(int(request.inputs))
            raise
