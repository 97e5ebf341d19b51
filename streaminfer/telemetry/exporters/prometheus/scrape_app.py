"""`metrics_app`: Prometheus' `/metrics` as an ASGI app, without a web framework."""

import asyncio
import time
import zlib
from typing import Any

from streaminfer.telemetry.asgi_app import AsgiApp, Headers, Message, Receive, Send, respond
from streaminfer.telemetry.exporters.collection import Collection
from streaminfer.telemetry.exporters.histogram_points import HistogramReader
from streaminfer.telemetry.exporters.prometheus.negotiation import FORMATS, Format, accepts_gzip, choose_format
from streaminfer.telemetry.services import name_services

__all__ = ["MetricsApp", "metrics_app"]

_TURN_S = 0.002  # longest time on the event loop before requests get a turn
_GZIP_LEVEL = 1  # most of the compression in a fifth of the time of level 6
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def metrics_app(*stacks: Any) -> "MetricsApp":
    """Return an ASGI app that serves the metrics of stacks to Prometheus.

    The app serves every path below its mount point, on the event loop of the stacks. The ``Accept`` header selects
    protobuf with native and classic histograms, OpenMetrics, or plain text. A client that accepts none of them gets
    status 406; a method other than GET and HEAD gets 405. Text is compressed if the client accepts gzip. Between stacks
    and between metrics the app lets waiting requests run.

    Args:
        stacks: `Stack` objects, or other services, layers, backends and stream sessions, with all parts inside. The
            name of the outermost telemetry of each becomes its label ``service``.
    """
    return MetricsApp(*stacks)


class MetricsApp(AsgiApp):
    """The app that `metrics_app` returns."""

    def __init__(self, *stacks: Any) -> None:
        self._services = name_services(stacks)
        self._reader = HistogramReader()

    async def _get(self, scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG002 - there is no body
        headers = _headers(scope["headers"])
        chosen = choose_format(headers.get("accept", ""))
        if chosen is None:
            offers = "".join(f"{offer.content_type}\n" for offer in FORMATS)
            await respond(scope, send, 406, offers.encode())
            return
        compress = chosen.is_compressed and accepts_gzip(headers.get("accept-encoding", ""))
        body = await self._render(chosen, compress)
        extra_headers = [(b"vary", b"Accept, Accept-Encoding")]
        if compress:
            extra_headers.append((b"content-encoding", b"gzip"))
        await respond(scope, send, 200, body, extra_headers, content_type=chosen.content_type.encode())

    async def _render(self, chosen: Format, compress: bool) -> bytes:
        began_s = time.perf_counter()
        collection = Collection(self._reader)
        for service, parts in self._services:
            collection.add(service, parts)
            began_s = await _yield_to_requests(began_s)
        compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW) if compress else None
        pieces: list[bytes] = []
        for chunk in chosen.write(collection.families):
            piece = chunk.encode() if isinstance(chunk, str) else chunk
            pieces.append(piece if compressor is None else compressor.compress(piece))
            began_s = await _yield_to_requests(began_s)
        if compressor is not None:
            pieces.append(compressor.flush())
        return b"".join(pieces)


async def _yield_to_requests(began_s: float) -> float:
    """Let requests run if the current turn has taken too long; return the start of the current turn."""
    if time.perf_counter() - began_s <= _TURN_S:
        return began_s
    await asyncio.sleep(0)
    return time.perf_counter()


def _headers(raw: Headers) -> dict[str, str]:
    """Return headers by lower-case name; values of repeated headers are joined by commas."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name = key.decode("latin-1").lower()
        headers[name] = f"{headers[name]}, {value.decode('latin-1')}" if name in headers else value.decode("latin-1")
    return headers
