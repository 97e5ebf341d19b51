"""`metrics_app`: Prometheus' `/metrics` as an ASGI app, without a web framework."""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from streaminfer.telemetry.exporters.collection import Collection, name_services
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.prometheus.negotiation import FORMATS, Format, accepts_gzip, choose_format

__all__ = ["MetricsApp", "metrics_app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TURN_S = 0.002  # after so long on the event loop, requests get their turn
_GZIP_LEVEL = 1  # most of the gain at a fifth of the time of level 6
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def metrics_app(*stacks: Any) -> "MetricsApp":
    """Return an ASGI app that answers a scrape with all that stacks measure.

    It serves every path below the one that it is mounted at, on the event loop of the stacks. The ``Accept`` header
    chooses protobuf with native and classic histograms, OpenMetrics, or plain text. A client that accepts none of them
    gets 406, a method other than GET and HEAD 405. The body is compressed if the client accepts gzip. The app gives way
    to requests between two stacks and between two metrics.

    Args:
        stacks: `Stack` objects, or other services, layers and backends. The name of the outermost telemetry of each is
            its label ``service``.
    """
    return MetricsApp(*stacks)


class MetricsApp:
    """The app that `metrics_app` returns."""

    def __init__(self, *stacks: Any) -> None:
        self._services = name_services(stacks)
        self._reader = HistogramReader()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"scope type: expected 'http' or 'lifespan', got {scope['type']!r}")
        headers = _headers(scope["headers"])
        if scope["method"] not in {"GET", "HEAD"}:
            await _respond(send, 405, b"only GET and HEAD\n", [(b"allow", b"GET, HEAD")])
            return
        chosen = choose_format(headers.get("accept", ""))
        if chosen is None:
            offers = "".join(f"{offer.content_type}\n" for offer in FORMATS)
            await _respond(send, 406, offers.encode())
            return
        compress = accepts_gzip(headers.get("accept-encoding", ""))
        body = await self._render(chosen, compress)
        extra = [(b"content-type", chosen.content_type.encode()), (b"vary", b"Accept, Accept-Encoding")]
        if compress:
            extra.append((b"content-encoding", b"gzip"))
        await _respond(send, 200, body, extra, head=scope["method"] == "HEAD")

    async def _render(self, chosen: Format, compress: bool) -> bytes:
        turn = _Turn()
        collection = Collection(self._reader)
        for service, stack in self._services:
            collection.add(service, stack)
            await turn.end_if_due()
        compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW) if compress else None
        pieces: list[bytes] = []
        for written in chosen.write(collection.families):
            piece = written.encode() if isinstance(written, str) else written
            pieces.append(piece if compressor is None else compressor.compress(piece))
            await turn.end_if_due()
        if compressor is not None:
            pieces.append(compressor.flush())
        return b"".join(pieces)


class _Turn:
    """The time for which a task has had the event loop."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    async def end_if_due(self) -> None:
        if time.perf_counter() - self._began_s > _TURN_S:
            await asyncio.sleep(0)
            self._began_s = time.perf_counter()


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name in lower case; those that come several times are one list."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name = key.decode("latin-1").lower()
        headers[name] = f"{headers[name]}, {value.decode('latin-1')}" if name in headers else value.decode("latin-1")
    return headers


async def _respond(
    send: Send, status: int, body: bytes, extra: Iterable[tuple[bytes, bytes]] = (), *, head: bool = False
) -> None:
    headers = [(b"content-length", str(len(body)).encode()), *extra]
    if not any(name == b"content-type" for name, _ in headers):
        headers.append((b"content-type", b"text/plain; charset=utf-8"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        kind = message["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
