"""An HTTP/1.1 client with little cost beside the server that it measures: it repeats the same request."""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["HttpClient"]

TIMEOUT_S = 30.0


class HttpClient:
    """Client that repeats one request, with a kept connection per request in flight; a context manager.

    Args:
        url: ``host:port``.
        path: path of the request, a POST.
        body: body of the request.
        headers: headers of the request.
    """

    def __init__(self, url: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        host, _, port = url.partition(":")
        self._address = host, int(port)
        named = {"Host": url, "Content-Length": str(len(body)), **headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
        self._message = "\r\n".join(lines).encode() + body
        self._idle: list[_Connection] = []
        self._all: list[_Connection] = []

    async def call(self, _: int) -> None:
        """Send the request and wait for its response.

        Raises:
            OSError: no response came in time, its status is not 200, or the connection ended.
        """
        connection = self._take() or await self._connect()
        await connection.exchange(self._message)
        self._idle.append(connection)

    def _take(self) -> "_Connection | None":
        """Return a connection that the server has not closed, as it does after a while without a request."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self) -> "_Connection":
        connection = _Connection()
        await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        self._all.append(connection)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    transport: Any

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._response: asyncio.Future[None] = self._loop.create_future()
        self._received = bytearray()
        self._length = 0  # of the response; 0 until its head has arrived

    async def exchange(self, message: bytes) -> None:
        self._response = self._loop.create_future()
        self.transport.write(message)
        limit = self._loop.call_later(TIMEOUT_S, self._fail, f"no response in {TIMEOUT_S:.0f} s")
        try:
            await self._response
        finally:
            limit.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._length and (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            self._read_head(bytes(self._received[:end]))
        if self._length and len(self._received) >= self._length:
            self._received.clear()
            self._length = 0
            if not self._response.done():
                self._response.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection ended: {error}")

    def _read_head(self, head: bytes) -> None:
        status, *lines = head.lower().split(b"\r\n")
        lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
        if status.split(b" ")[1] != b"200" or not lengths:
            self._fail(str(head))
        else:
            self._length = len(head) + int(lengths[0])

    def _fail(self, reason: str) -> None:
        self.transport.abort()
        if not self._response.done():
            self._response.set_exception(ConnectionError(reason))
