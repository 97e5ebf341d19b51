"""Connections to a Redis server whose making takes its own time, and not that of who needs one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

__all__ = ["client_of"]

_CONNECT_S = 5.0


def client_of(library: Any, url: str, *, max_connections: int, wait_s: float, tls: Mapping[str, Any]) -> Any:
    """A client with connections of its own, which are made when they are needed, and retry nothing.

    Args:
        library: ``redis.asyncio``.
        url: of the server.
        max_connections: at most so many at once.
        wait_s: for how long an operation waits for one.
        tls: what the connections take besides.
    """
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - an optional dependency
    from redis.backoff import NoBackoff  # noqa: PLC0415 - the same

    pool = library.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=wait_s,
        socket_timeout=None,  # each operation has its own
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        **tls,
    )
    pool.connection_class = _connects_in_its_own_time(pool.connection_class)
    return library.Redis.from_pool(pool)


def _connects_in_its_own_time(connection: type[Any]) -> type[Any]:
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
