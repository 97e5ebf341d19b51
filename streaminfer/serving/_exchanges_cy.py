"""Requests in flight of an app; ends the work for a request if its body comes too slowly or its client disconnects.

One timer serves all requests of an app, because one timer per request would cost more than the rest of the protocol. It
runs only while there are requests. A request that ends before the second tick needs no task that listens for its
client.

One source, compiled with the C types of ``_exchanges_cy.pxd``, or run as Python.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from streaminfer.serving.errors import RequestRejected

if TYPE_CHECKING:
    from streaminfer.telemetry.asgi_app import Message, Receive

__all__ = ["CLIENT_CLOSED_REQUEST", "ClientGone", "Exchange", "ExchangeWatch", "has_no_body"]

_TICK_S = 0.02
"""Seconds between two ticks of the timer."""


CLIENT_CLOSED_REQUEST = 499
"""Status of a request if its client has disconnected, as nginx logs it."""


class ClientGone(Exception):  # noqa: N818 - not an error of the server
    """Raised in place of a response if the client has disconnected.

    Attributes:
        has_begun: whether a part of the response was sent.
    """

    def __init__(self, *, has_begun: bool = False) -> None:
        super().__init__()
        self.has_begun = has_begun


class Exchange:
    """One request, and the tasks that work for it, each inside ``with exchange:``.

    If the exchange is cancelled, each ``with`` block raises an error of its own. Several tasks may be in the block at
    the same time. To listen for the client is to read the server's next message, so this starts after the whole body
    was read. If there is no body, the framework may read its empty message later, so the exchange stores that message.

    Args:
        watch: checks the exchange while a task is in the block.
        scope: from the ASGI server.
        receive: from the ASGI server.

    Attributes:
        body_is_read: whether the whole body was read; ``None``: not known.
        has_begun: whether a part of the response was sent.
        is_answered: whether the whole response was sent; a later disconnect ends no work.
        loop: the event loop of the tasks; ``None`` before the first.
        ticks: number of the watch's ticks in the current phase of the exchange (body or response).
    """

    def __init__(self, watch: ExchangeWatch, scope: Message, receive: Receive) -> None:
        self._watch = watch
        self._scope = scope
        self._receive = receive
        self._tasks: list[asyncio.Task[Any]] = []
        self._make_error: Callable[[], Exception] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._buffered: Message | None = None
        self.body_is_read: bool | None = None
        self.has_begun = self.is_answered = False
        self.ticks = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_over(self) -> bool:
        """True if the client has disconnected, or its body came too slowly."""
        return self._make_error is not None

    def __enter__(self) -> Self:
        loop = self.loop = get_running_loop()
        task = current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine of an ASGI server runs in one
        self._tasks.append(task)
        if len(self._tasks) == 1:
            self._watch.add(self, loop)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        tasks = self._tasks
        if len(tasks) > 1:
            task = current_task()
            assert task is not None  # noqa: S101 - as above
            tasks.remove(task)
        else:
            task = tasks.pop()
            self._watch.discard(self)
            if self._listening is not None:
                self._listening.cancel()
                self._listening = None
        if self._make_error is not None and not task.uncancel() and isinstance(error, asyncio.CancelledError):
            raise self._make_error() from None

    async def receive(self) -> Message:
        """Receive the next message; the framework calls this in place of the server's ``receive``."""
        if self._buffered is None:
            return self._note(await self._receive())
        message, self._buffered = self._buffered, None
        return message

    def cancel(self, make_error: Callable[[], Exception]) -> None:
        """End the blocks, unless they end already: several listeners may see one disconnect.

        Args:
            make_error: makes the error of each block. The exchange stores no error, because the traceback of an error
                holds frames that refer to the exchange.
        """
        if self._make_error is None:
            self._make_error = make_error
            for task in self._tasks:
                task.cancel()

    def listen(self) -> None:
        """Start to wait for the server's next messages, one of which reports the client's disconnect."""
        self._listening = asyncio.ensure_future(self._listen())

    def is_read(self) -> bool:
        """Return whether the whole body was read, or there is none."""
        if self.body_is_read is None:
            self.body_is_read = has_no_body(self._scope)
        return self.body_is_read

    def _note(self, message: Message) -> Message:
        if message["type"] == "http.disconnect":
            if not self.is_answered:
                self.cancel(partial(ClientGone, has_begun=self.has_begun))
        else:
            self.body_is_read = not message.get("more_body", False)
        return message

    async def _listen(self) -> None:
        for _ in range(2):  # the first message may be an empty body
            message = self._note(await self._receive())
            if self._make_error is not None:
                return
            self._buffered = message
            if not self.body_is_read:  # there is a body after all, and the framework reads the rest
                return


class ExchangeWatch:
    """Watches the exchanges of one app.

    Args:
        body_timeout_s: seconds within which a body must arrive; ``None``: no limit.
    """

    def __init__(self, body_timeout_s: float | None) -> None:
        self._body_timeout_s = body_timeout_s
        self._open: dict[Exchange, None] = {}  # without those that already listen for their clients
        self._loop: asyncio.AbstractEventLoop | None = None  # the event loop on which the timer runs

    def add(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        """Watch an exchange on the running loop."""
        exchange.ticks = 0
        self._open[exchange] = None
        if self._loop is not loop:  # an app can outlive a loop
            self._loop = loop
            loop.call_later(_TICK_S, self._tick, loop)

    def discard(self, exchange: Exchange) -> None:
        """Stop watching an exchange."""
        self._open.pop(exchange, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        for exchange in list(self._open):
            exchange.ticks += 1
            if exchange.is_read():
                if exchange.ticks > 1:
                    del self._open[exchange]
                    exchange.listen()
            elif self._body_timeout_s is not None and exchange.ticks * _TICK_S > self._body_timeout_s:
                del self._open[exchange]
                message = f"body: expected within {self._body_timeout_s} s"
                exchange.cancel(partial(RequestRejected, 408, message, closes_connection=True))
        if self._open:
            loop.call_later(_TICK_S, self._tick, loop)
        else:
            self._loop = None


def has_no_body(scope: Message) -> bool:
    """Return whether the headers of a request say that it has no body."""
    if scope["method"] in {"GET", "HEAD"}:
        return True
    values = {name: value for name, value in scope["headers"] if name in {b"content-length", b"transfer-encoding"}}
    if not values:
        return str(scope.get("http_version")).startswith("1")  # from HTTP/2 on a body needs neither header
    return values == {b"content-length": b"0"}
