"""Address of a Redis server, and connections to it with a separate time limit for the handshake."""

import asyncio
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qs, urlsplit

from streaminfer._internal.validation import check_instance
from streaminfer.caching.tiers.redis.tls import TlsFiles, own_tls

__all__ = ["blocking_client_of", "check_url", "client_of", "close"]

CONNECT_TIMEOUT_S = 5.0
URL_OPTIONS = frozenset({"client_name", "db", "password", "protocol", "username"})


def check_url(url: Any, files: TlsFiles) -> TlsFiles | None:
    """Check a URL, and return the TLS files; ``None`` for a URL without TLS.

    Args:
        url: of the server.
        files: the TLS files.

    Raises:
        TypeError, ValueError: the URL is invalid, or TLS files are given for a URL without TLS. The message does not
            show the URL, which may contain a password.
    """
    check_instance("url", url, str, "a string")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("url: expected redis://…, rediss://… or unix://…")
    parts = _split(url)
    options = sorted(set(parse_qs(parts.query, keep_blank_values=True)) - URL_OPTIONS)
    if options:  # an option in the URL would override the settings of this tier
        raise ValueError(f"url: expected no options but {', '.join(sorted(URL_OPTIONS))}, got {', '.join(options)}")
    if url.startswith("rediss://"):
        return files
    if files != TlsFiles(None, None, None):
        raise ValueError("tls_ca, tls_certificate, tls_key: expected a url that begins with rediss://")
    return None


def _split(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises:
        ValueError: the URL has no such parts. A ``/`` or ``#`` in a password, for example, would turn the rest into a
            path, and the password into a port, which error messages show.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        pass
    else:
        if parts.scheme == "unix" or "@" not in parts.path + parts.fragment:
            return parts
    raise ValueError(
        "url: expected a host, perhaps with a port, and a password whose special characters are percent-encoded, "
        "got something else (not shown)"
    )


def client_of(library: Any, url: str, *, max_connections: int, wait_s: float, tls: TlsFiles | None) -> Any:
    """Return a client with its own connections, which it opens on demand; the client retries nothing.

    Args:
        library: ``redis.asyncio``.
        url: of the server.
        max_connections: most connections at once.
        wait_s: seconds that an operation waits for a connection.
        tls: the TLS files; ``None``: no TLS.
    """
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - an optional dependency
    from redis.backoff import NoBackoff  # noqa: PLC0415 - the same

    pool = library.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=wait_s,
        socket_timeout=None,  # each operation has its own timeout
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )
    if tls is not None:
        pool.connection_class = own_tls(pool.connection_class, tls)
    pool.connection_class = _connects_in_its_own_time(pool.connection_class)
    pool._condition = _Condition()
    return library.Redis.from_pool(pool)


async def close(client: Any) -> None:
    """Close the connections of a client of `client_of`; operations that wait for one open no new ones."""
    client.connection_pool.connection_class.is_closed = True
    await client.aclose()


def blocking_client_of(library: Any, url: str, *, timeout_s: float, tls: TlsFiles | None) -> Any:
    """Return a client for threads.

    Args:
        library: ``redis``.
        url: of the server.
        timeout_s: timeout of each step, in seconds.
        tls: the TLS files; ``None``: no TLS.
    """
    pool = library.ConnectionPool.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    if tls is not None:
        pool.connection_class = own_tls(pool.connection_class, tls, blocking=True)
    return library.Redis.from_pool(pool)


class _Condition(asyncio.Condition):
    """Condition that passes a notification on if the wait that received it is cancelled.

    Before Python 3.13, asyncio's condition loses it, and others would wait although a connection is free.
    """

    async def wait(self) -> Literal[True]:
        """Wait until it is notified."""
        try:
            return await super().wait()
        except BaseException:
            self.notify()
            raise


def _connects_in_its_own_time(connection: type[Any]) -> type[Any]:
    """Return a connection class whose handshake (several round trips) continues if its operation times out."""

    class Connection(connection):  # type: ignore[misc]
        is_closed = False  # for all connections of the client
        _connecting: asyncio.Task[None] | None = None

        async def connect(self) -> None:
            task = self._connecting
            # during the handshake, `redis` renews the connection's subscriptions itself
            if task is asyncio.current_task() or (task is None and self.is_connected):
                return
            if task is None:
                if self.is_closed:
                    raise ConnectionError("the client was closed")
                task = self._connecting = asyncio.get_running_loop().create_task(self._connect_within())
                task.add_done_callback(self._connected)
            await _end_of(task)

        async def _connect_within(self) -> None:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await super().connect()
            except BaseException:
                await super().disconnect(nowait=True)  # leave no half-open connection
                raise

        def _connected(self, task: asyncio.Task[None]) -> None:
            self._connecting = None
            task.cancelled() or task.exception()  # marks the error as retrieved; waiters raise it themselves

        async def disconnect(self, *args: Any, **options: Any) -> None:
            task = self._connecting
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await super().disconnect(*args, **options)

    return Connection


async def _end_of(handshake: asyncio.Task[None]) -> None:
    """Wait for a handshake, which continues if the wait is cancelled."""
    await asyncio.wait({handshake})
    if handshake.cancelled():  # `disconnect` cancelled it, not the waiting operation
        raise ConnectionError("the connection was closed before it was made")
    handshake.result()
