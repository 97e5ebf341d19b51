"""`CdnEdge`: a hop through a real nginx cache, where consumers read a live stream as from a CDN."""

import asyncio
import contextlib
import itertools
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import quote

from streaminfer._internal.validation import check_count
from streaminfer.errors import BackendError
from streaminfer.loadtest.path.nginx import Nginx, run_nginx

__all__ = ["CdnEdge"]

CACHE_MAX_AGE_S = 10
CONFIGURATION = """
pid nginx.pid;
worker_processes 1;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_cache_path cache levels=1:2 keys_zone=units:10m max_size=256m inactive=30s use_temp_path=off;
    upstream origin { server 127.0.0.1:{origin}; keepalive 64; }
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:{port};
        location / {
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache units;
            proxy_cache_key $request_uri;
            add_header X-Cache $upstream_cache_status always;
        }
    }
}
"""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class CdnEdge:
    """nginx in front of an origin, both on loopback.

    The edge puts a unit at the origin; then the consumers get it through the cache, one after the other. The first
    request is a miss, the others are hits.

    Args:
        consumers: number of consumers of each unit, including the model.

    Attributes:
        hits: responses from the cache.
        misses: responses from the origin.

    Raises:
        FileNotFoundError: nginx is not installed; raised when the edge starts.
    """

    def __init__(self, *, consumers: int = 1) -> None:
        self._consumers = check_count("consumers", consumers)
        self.hits = self.misses = 0
        self._units: dict[str, bytes] = {}
        self._unit_numbers = itertools.count()
        self._idle: list[Connection] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._exit_stack = contextlib.AsyncExitStack()
        self._nginx: Nginx | None = None

    async def carry(self, path: str, number: int, data: bytes) -> bytes:
        """Send a unit through the cache and return the bytes that the last consumer gets.

        Args:
            path: name of the stream.
            number: number of the unit in the stream.
            data: the unit.

        Raises:
            BackendError: nginx returns no valid response, or the edge ends meanwhile.
            RuntimeError: the edge is not running.
        """
        if self._nginx is None:
            raise RuntimeError("the edge does not run; use `async with CdnEdge() as edge`")
        # unique per call: for a repeated address nginx would return the unit, or the 404, that it has stored
        address = f"/{quote(path)}/{number}/{next(self._unit_numbers)}"
        self._units[address] = data
        received = b""
        try:
            for _ in range(self._consumers):
                received = await self._get(address)
        except (OSError, EOFError, KeyError, ValueError) as error:
            raise BackendError(f"CDN edge: no valid response for {address}: {error!r}") from error
        finally:
            self._units.pop(address, None)
        return received

    def cpu_s(self) -> float:
        """Return the CPU seconds that nginx has used, on Linux; 0 elsewhere."""
        if self._nginx is None:
            return 0.0
        tasks = Path(f"/proc/{self._nginx.pid}/task/{self._nginx.pid}/children")
        if not tasks.exists():
            return 0.0
        from os import sysconf  # noqa: PLC0415 - not on every system

        ticks = 0
        for pid in (str(self._nginx.pid), *tasks.read_text(encoding="utf-8").split()):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # user and system time
        return ticks / sysconf("SC_CLK_TCK")

    async def __aenter__(self) -> Self:
        origin = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._exit_stack.callback(origin.close)
        folder = Path(self._exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="streaminfer-edge-")))
        text = CONFIGURATION.replace("{origin}", str(origin.sockets[0].getsockname()[1]))
        running = run_nginx(folder, text)
        starting = asyncio.ensure_future(asyncio.to_thread(running.__enter__))
        self._exit_stack.push_async_callback(_stop_after_start, starting, running)
        try:
            self._nginx = await asyncio.shield(starting)
        except BaseException:
            await self._exit_stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._nginx = None
        for _reader, writer in self._idle:
            writer.close()
        self._idle.clear()
        await self._exit_stack.aclose()
        if self._serving:
            await asyncio.wait(self._serving)  # each ends when nginx closes its connection

    async def _get(self, address: str) -> bytes:
        nginx = self._nginx
        if nginx is None:
            raise ConnectionError("the edge has ended")
        reader, writer = self._take_idle() or await asyncio.open_connection("127.0.0.1", nginx.port)
        try:
            writer.write(f"GET {address} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            writer.close()  # a later request must not read the rest of this response
            raise
        if self._nginx is nginx:
            self._idle.append((reader, writer))
        else:
            writer.close()
        if not head[0].startswith("http/1.1 200"):
            raise BackendError(f"CDN edge: {address}: {head[0]}")
        if fields.get("x-cache") == "hit":
            self.hits += 1
        else:
            self.misses += 1
        return body

    def _take_idle(self) -> Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # nginx closes idle connections after about a minute
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio makes one
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                data = self._units.get(head.split(b" ", 2)[1].decode("latin-1"))
                status = "404 Not Found" if data is None else "200 OK"
                fields = f"content-length: {len(data or b'')}\r\ncache-control: max-age={CACHE_MAX_AGE_S}\r\n\r\n"
                writer.write(f"HTTP/1.1 {status}\r\n{fields}".encode() + (data or b""))
                await writer.drain()
        except (OSError, EOFError):
            pass  # nginx has closed the connection
        finally:
            writer.close()


async def _stop_after_start(starting: asyncio.Future[Nginx], running: contextlib.AbstractContextManager[Nginx]) -> None:
    """Stop nginx once it has started: after a cancelled start, the thread still starts nginx in the folder."""
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await asyncio.to_thread(running.__exit__, None, None, None)
