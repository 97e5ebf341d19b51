"""`dashboard`: the live page as an ASGI app, to mount in the developer's own server.

The app is read-only. It serves GET and HEAD for the page, its files and the feed, under any prefix. Its responses
forbid browsers to load or run anything else (Content-Security-Policy), and they contain no data of requests.
"""

import asyncio
from importlib.resources import files
from typing import Any

from streaminfer.telemetry.asgi_app import AsgiApp, Headers, Message, Receive, Send, respond
from streaminfer.telemetry.live_page.feed import Feed

__all__ = ["dashboard"]

_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "vendor/uPlot.iife.min.js": ("vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "vendor/uPlot.min.css": ("vendor/uPlot.min.css", "text/css; charset=utf-8"),
    "vendor/uPlot-LICENSE.txt": ("vendor/uPlot-LICENSE.txt", "text/plain; charset=utf-8"),
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_STREAM_S = 30.0
"""Longest duration of a stream, after which the browser opens the next one; a server that stops waits no longer."""
_RETRY_MS = 250
_POLL_MS = 1000


def dashboard(*stacks: Any, interval_s: float = 0.5) -> "Dashboard":
    """Return the live page of stacks as an ASGI app.

    The page shows the statistics of the stacks: tails, queues, batches, drops, routes, budgets, caches. While no
    browser is connected, it does nothing. It needs no database, no build step and no other host. It has no login, so
    protect it like any internal page.

    Args:
        stacks: stacks, other services, and objects with ``statistics()`` such as a `StreamSession`, in the order of the
            page. They may be started before or after this call.
        interval_s: seconds between two updates.

    Raises:
        TypeError, ValueError: there is no stack, a stack has no statistics, or the interval is not above 0.

    Example:
        ``app.mount("/live", si.telemetry.dashboard(stack))`` in FastAPI or Starlette.
    """
    return Dashboard(Feed(stacks, interval_s))


class Dashboard(AsgiApp):
    """The ASGI app of the live page.

    Args:
        feed: feed of the updates.
        stream_s: seconds after which a stream of updates ends; the browser then opens the next one.
    """

    def __init__(self, feed: Feed, *, stream_s: float = _STREAM_S) -> None:
        self._feed = feed
        self._stream_s = stream_s
        self._static = files("streaminfer.telemetry.live_page") / "static"

    async def _get(self, scope: Message, receive: Receive, send: Send) -> None:
        path, root = scope["path"], scope.get("root_path", "")
        # a mount keeps its prefix in the path or removes it, depending on the version of the framework
        path = path.removeprefix(root) if root and path.startswith(root) else path
        name = path.removeprefix("/")
        if not path:
            # without the slash, relative addresses on the page would lack the prefix
            prefix = scope["path"].rpartition("/")[2] or root.rpartition("/")[2]
            await _respond(scope, send, 307, "text/plain", b"", ((b"location", f"{prefix}/".encode()),))
        elif name == "events":
            await self._stream(scope, receive, send)
        elif name in _FILES:
            file, kind = _FILES[name]
            await _respond(scope, send, 200, kind, (self._static / file).read_bytes())
        else:
            await _respond(scope, send, 404, "text/plain", b"not found\n")

    async def _stream(self, scope: Message, receive: Receive, send: Send) -> None:
        is_poll = scope.get("query_string", b"") == b"poll"
        headers = ((b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"), *_HEADERS[:-1])
        no_store = (b"cache-control", b"no-store")
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, no_store]})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        last_id = next((value for name, value in scope["headers"] if name == b"last-event-id"), b"").decode("latin-1")
        retry = f"retry: {_POLL_MS if is_poll else _RETRY_MS}\n\n".encode()
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._stream_s
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            while not disconnected.done():
                wait_s = self._feed.refresh()
                events, last_id = self._feed.after(last_id)
                if retry + events:
                    await send({"type": "http.response.body", "body": retry + events, "more_body": True})
                retry = b""
                left_s = ends_s - loop.time()
                if is_poll or left_s <= 0.0:
                    break
                await asyncio.wait({disconnected}, timeout=min(wait_s, left_s))
            if not disconnected.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _respond(
    scope: Message, send: Send, status: int, kind: str, body: bytes, extra_headers: Headers = ()
) -> None:
    await respond(scope, send, status, body, (*_HEADERS, *extra_headers), content_type=kind.encode())
