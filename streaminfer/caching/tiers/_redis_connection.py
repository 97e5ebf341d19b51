"""Connections to a Redis server whose making takes its own time, and not that of who needs one."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["connects_in_its_own_time"]

_CONNECT_S = 5.0


def connects_in_its_own_time(connection: type[Any]) -> type[Any]:
    """A class of connections whose handshake, several round trips, goes on when who needed it waits no longer."""

    class Connection(connection):  # type: ignore[misc]
        _connecting: asyncio.Task[None] | None = None

        async def connect(self) -> None:
            task = self._connecting
            if task is None:
                if self.is_connected:
                    return
                task = self._connecting = asyncio.get_running_loop().create_task(self._connect_within())
                task.add_done_callback(self._connected)
            await asyncio.shield(task)

        async def _connect_within(self) -> None:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await super().connect()
            except BaseException:
                await super().disconnect(nowait=True)  # no half of a handshake stays
                raise

        def _connected(self, task: asyncio.Task[None]) -> None:
            self._connecting = None
            if not task.cancelled():
                task.exception()  # who waits has it; who does not has a timeout of its own

        async def disconnect(self, *args: Any, **options: Any) -> None:
            task = self._connecting
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await super().disconnect(*args, **options)

    return Connection
