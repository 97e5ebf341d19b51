"""ASGI apps on loopback, over plain HTTP/1.1, and requests to them without a network."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any, Self

__all__ = ["AsgiServer", "request"]


async def request(
    app: Any, method: str = "GET", headers: Iterable[tuple[str, str]] = (), path: str = "/metrics"
) -> tuple[int, dict[str, str], bytes]:
    """Send one request without a network; return status, headers by name, and body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    start, *parts = sent
    named = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], named, b"".join(part["body"] for part in parts)


class AsgiServer:
    """Server that runs an app in a separate thread, with one connection per request.

    Attributes:
        address: host and port.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._answered = 0
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def wait_for_requests(self, number: int) -> None:
        """Wait until the app has responded to this many further requests."""
        with self._changed:
            goal = self._answered + number
            assert self._changed.wait_for(lambda: self._answered >= goal, 60)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        self._started.set()
        await self._stop.wait()
        server.close()
        await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = [(name, value) for line in head[1:] if line for name, _, value in [line.partition(": ")]]
        status, sent, body = await request(self.app, method, headers, path)
        lines = [
            f"HTTP/1.1 {status} X",
            *(f"{name}: {value}" for name, value in sent.items()),
            "connection: close",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode("latin-1") + body)
        await writer.drain()
        writer.close()
        with self._changed:
            self._answered += 1
            self._changed.notify_all()
