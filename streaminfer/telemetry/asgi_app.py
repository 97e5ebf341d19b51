"""`AsgiApp`: base class of the ASGI apps in this package, without a web framework."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

__all__ = ["AsgiApp", "Headers", "Message", "Receive", "Send", "respond"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class AsgiApp(ABC):
    """Read-only app: it serves GET and HEAD, and the lifespan protocol of a server that runs it alone."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["method"] in {"GET", "HEAD"}:
            await self._get(scope, receive, send)
        else:
            await respond(scope, send, 405, b"only GET and HEAD\n", [(b"allow", b"GET, HEAD")])

    @abstractmethod
    async def _get(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve GET or HEAD."""


async def respond(
    scope: Message,
    send: Send,
    status: int,
    body: bytes,
    headers: Headers = (),
    *,
    content_type: bytes = b"text/plain; charset=utf-8",
) -> None:
    """Send a complete response, without a body if the request is HEAD."""
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """Confirm the start and the stop of the server; the app needs neither."""
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
