"""Inference over HTTP with repeats served by nginx or a CDN; the server uses only the standard library.

``POST /v1/infer/1`` takes a JSON array of numbers, and its response names the address at which GET finds that response
again. A client can compute this address from the body. So it sends ``GET`` first, and posts only if that finds nothing;
the nearest cache serves every repeat, without an upload.

python examples/cdn_edge.py     serves on port 8001; start nginx with examples/cdn_edge.conf in front, on port 8000
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np

import streaminfer as si
from streaminfer.http_edge import EdgePolicy, answer_conditional, content_path, edge_headers, entity_tag

__all__ = ["Answer", "Edge", "Handler", "normalize", "serve"]

PREFIX = "/v1/infer"
MOST_BYTES = 1 << 20
NOT_KEPT = {"cache-control": "no-store"}

Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[str, str, dict[str, str], bytes], Awaitable[Answer]]


class Kept(NamedTuple):
    """Response that is encoded once, with the data that decides which caches may store it."""

    request: si.Request
    response: si.Response
    body: bytes
    etag: str
    computed_s: float


class Edge:
    """Application that responds to a method, a path, header fields (names in lower case) and a body.

    Args:
        service: computes the response to a request.
        cache: stores responses under tenant and path; an erased response is not found again.
        policy: rules for outside caches.
        version: version of the model.
        tenants: tenant of each known ``Authorization`` field.
        wall: returns the current time, in seconds since 1970.
    """

    def __init__(
        self,
        service: si.Stack,
        cache: si.EdgeCache,
        policy: EdgePolicy,
        *,
        version: str = "1",
        tenants: Mapping[str, str] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.service = service
        self.cache = cache
        self.policy = policy
        self.version = version
        self.tenants = tenants or {}
        self.wall = wall
        self.asked = 0

    async def __call__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Respond to one HTTP request; no cache may store the response to a failure."""
        self.asked += 1
        credentials = headers.get("authorization")
        tenant = self.tenants.get(credentials) if credentials else None
        if credentials and tenant is None:
            return 401, NOT_KEPT | {"www-authenticate": "Bearer"}, b""
        if method in {"GET", "HEAD"}:
            return self.repeat(method, path, headers, tenant)
        if method == "POST" and path == f"{PREFIX}/{self.version}":
            return await self.infer(headers, body, tenant)
        return 404, NOT_KEPT, b""

    def repeat(self, method: str, path: str, headers: dict[str, str], tenant: str | None) -> Answer:
        """Return a stored response, 304 if the client has it already, or 404."""
        kept = self.cache.get((tenant, path))
        if kept is None:
            return 404, NOT_KEPT, b""
        return answer_conditional(method, headers, self.headers(kept), kept.body)

    async def infer(self, headers: dict[str, str], body: bytes, tenant: str | None) -> Answer:
        """Compute a response and store it under the digest of the posted body, which the server computes itself."""
        try:
            numbers = np.array(json.loads(body), np.float32)
            if numbers.ndim != 1 or not numbers.size:
                raise si.InvalidInput("expected an array of numbers")
            request = si.Request(numbers, tenant=tenant, subject=headers.get("x-subject"))
            response = await self.service.call(request)
        except si.Overloaded as error:
            return 503, NOT_KEPT | {"retry-after": str(int(error.retry_after_s or 0.0) + 1)}, b""
        except (TypeError, ValueError) as error:
            return 400, NOT_KEPT | {"content-type": "text/plain; charset=utf-8"}, str(error).encode()
        answer = json.dumps(response.outputs.tolist()).encode()
        kept = Kept(request.replace(inputs=None), response, answer, entity_tag(answer), self.wall())
        fields = self.headers(kept) | NOT_KEPT  # no cache stores this POST's response; the GET at its address is stored
        if not response.degraded:
            path = content_path(body, version=self.version, prefix=PREFIX)
            self.cache.put((tenant, path), kept, subject=request.subject)
            fields["content-location"] = path
        return 200, fields, answer

    def headers(self, kept: Kept) -> dict[str, str]:
        """Return the header fields of a stored response at the current time."""
        fields = edge_headers(
            self.policy,
            kept.request,
            kept.response,
            now_s=self.wall(),
            computed_s=kept.computed_s,
            etag=kept.etag,
        )
        fields["content-type"] = "application/json"
        return fields


@contextlib.asynccontextmanager
async def serve(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """Serve HTTP/1.1 on loopback while the block runs, with only the features that a server behind a proxy needs.

    Args:
        handler: responds to a request.
        port: port to listen on; 0 picks a free one.

    Yields:
        The port.
    """
    open_: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        open_[task] = writer
        try:
            while await _one(handler, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or does not speak HTTP
        finally:
            del open_[task]
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_.values():
            writer.close()  # a reader of this connection sees its end
        await asyncio.gather(*open_)


async def _one(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Respond to one request of a connection; return whether another can follow."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, rest = head[0].partition(" ")
    path, _, protocol = rest.rpartition(" ")
    headers: dict[str, str] = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    length = headers.get("content-length", "0")
    keeps = protocol == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()) or int(length) > MOST_BYTES:
        status, fields, body, keeps = 413, dict(NOT_KEPT), b"", False
    else:
        sent = await reader.readexactly(int(length))
        try:
            status, fields, body = await handler(method, path, headers, sent)
        except si.StreamInferError as error:
            status, fields, body = 500, NOT_KEPT | {"x-error": type(error).__name__}, b""
    if status != 304 and method != "HEAD":
        fields = fields | {"content-length": str(len(body))}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
    return keeps


def normalize(batch: np.ndarray) -> np.ndarray:
    """Return each row divided by its length; this is the model."""
    return batch / np.maximum(np.linalg.norm(batch, axis=1, keepdims=True), 1e-9)  # type: ignore[no-any-return]


async def main() -> None:
    """Serve until interrupted."""
    policy = EdgePolicy(fresh_s=60, lifetime_s=3600, stale_while_revalidate_s=30, stale_if_error_s=600)
    cache = si.EdgeCache(maxsize=100_000, ttl_s=3600)
    model = si.CpuBackend(normalize)
    async with (
        si.Stack(si.AdaptiveBatcher(max_batch_size=32, slo_s=0.1), model) as service,
        serve(Edge(service, cache, policy, tenants={"Bearer one": "one", "Bearer two": "two"}), 8001) as port,
    ):
        print(f"serving on port {port}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
