"""Live loads: a task that lets models leave a device's memory, and brings another one there."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from streaminfer.protocols import Clock, Residency

__all__ = ["LiveResidence"]


class LiveResidence:
    """How the model of one batcher comes into memory; the device says when.

    A load belongs to no request: it goes on when all callers have left, so what is in memory is always known.

    Args:
        residency: of the backend.
        clock: returns monotonic nanoseconds.
        begin: told when a load begins; what it returns is given to ``end``.
        end: told when it has ended, and with which error.

    Attributes:
        memory_bytes: what the model takes.
        task: the load that runs; ``None``: none does.
    """

    def __init__(
        self,
        residency: Residency,
        *,
        clock: Clock,
        begin: Callable[[int], Any],
        end: Callable[[Any, int, BaseException | None], None],
    ) -> None:
        self.memory_bytes = residency.memory_bytes
        self.task: asyncio.Task[None] | None = None
        self._residency = residency
        self._clock = clock
        self._begin = begin
        self._end = end

    def load(self, leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Load the model when others have left."""
        self.task = asyncio.get_running_loop().create_task(self._load(leaving, done))

    async def _load(self, leaving: Sequence["LiveResidence"], done: Callable[[int, bool, int], None]) -> None:
        told = self._begin(self._clock())
        error: BaseException | None = None
        stayed = len(leaving)
        try:
            for other in leaving:
                await other._residency.unload()
                stayed -= 1
            await self._residency.load()
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            self.task = None
            now_ns = self._clock()
            done(now_ns, error is None, stayed)
            self._end(told, now_ns, error)
