"""A service whose calls last until they are cancelled, and are noted then."""

import asyncio

__all__ = ["Sleeper"]


class Sleeper:
    """``cancelled`` has the inputs of the calls that were cancelled, in the order of the cancellations."""

    def __init__(self):
        self.cancelled = []

    async def call(self, request):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(int(request.inputs))
            raise
