"""Address of a Redis server, and connections to it, whose handshake has a time limit of its own."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from streaminfer._internal.validation import check_instance

__all__ = ["client_of", "tls_options"]

CONNECT_TIMEOUT_S = 5.0
URL_OPTIONS = frozenset({"client_name", "db", "password", "protocol", "username"})
TLS_OPTIONS = {"tls_ca": "ssl_ca_certs", "tls_certificate": "ssl_certfile", "tls_key": "ssl_keyfile"}


def tls_options(url: Any, **paths: str | None) -> dict[str, Any]:
    """Check a URL, and return the options of the client library for TLS.

    Args:
        url: of the server.
        paths: of certificates and keys, by the names in `TLS_OPTIONS`.

    Raises:
        TypeError, ValueError: no such URL, or paths for a URL without TLS. The message does not show the URL, which may
            hold a password.
    """
    check_instance("url", url, lambda it: isinstance(it, str), "a string")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("url: expected redis://…, rediss://… or unix://…")
    options = sorted(set(parse_qs(urlsplit(url).query, keep_blank_values=True)) - URL_OPTIONS)
    if options:  # an option of the client library would win over what this tier sets, checks of TLS included
        raise ValueError(f"url: expected no options but {', '.join(sorted(URL_OPTIONS))}, got {', '.join(options)}")
    given = {TLS_OPTIONS[name]: path for name, path in paths.items() if path is not None}
    if url.startswith("rediss://"):
        return given | {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if given:
        raise ValueError("tls_ca, tls_certificate, tls_key: expected a url that begins with rediss://")
    return {}


def client_of(library: Any, url: str, *, max_connections: int, wait_s: float, tls: Mapping[str, Any]) -> Any:
    """Return a client with connections of its own, which are made when they are needed, and which retries nothing.

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
    """Return a class of connections whose handshake, several round trips, outlives the operation that needed it."""

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
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
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
