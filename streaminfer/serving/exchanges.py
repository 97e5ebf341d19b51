"""Requests that an app is answering; a body that comes too slowly and a client that goes away end theirs.

One timer serves all of them, because two timers for each request cost more than the rest of the protocol. It runs only
while there are requests.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from streaminfer.serving.errors import RequestRejected

__all__ = ["ClientGone", "Exchange", "ExchangeWatch"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_EVERY_S = 0.02
"""How often it looks; a request that is answered sooner costs no task that listens for its client."""


class ClientGone(Exception):  # noqa: N818 - not an error of the server
    """Raised in place of a response to a client that has gone."""


class Exchange:
    """One request; its block ends with the reason for which the watch cancelled it.

    Args:
        watch: that follows it.
        receive: of the ASGI server.

    Attributes:
        receive: as above.
        since_s: when its present part began: reading the body, then answering.
    """

    __slots__ = ("_listening", "_reason", "_task", "_watch", "receive", "since_s")

    def __init__(self, watch: "ExchangeWatch", receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of an ASGI server runs in one
        self._watch = watch
        self._task: asyncio.Task[Any] = task
        self._reason: Exception | None = None
        self._listening: asyncio.Future[MutableMapping[str, Any]] | None = None
        self.receive = receive
        self.since_s = 0.0

    def __enter__(self) -> Self:
        self._watch.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watch.discard(self)
        if self._listening is not None:
            self._listening.remove_done_callback(self._heard)
            self._listening.cancel()
        if self._reason is not None and not self._task.uncancel() and isinstance(error, asyncio.CancelledError):
            raise self._reason from None

    def has_body(self) -> None:
        """Note that the body has come; from now on it is the client that is watched."""
        self._watch.move(self)

    def cancel(self, reason: Exception) -> None:
        """End the block, with this error."""
        self._reason = reason
        self._task.cancel()

    def listen(self) -> None:
        """Wait for the server's next message, which says that the client has gone."""
        self._listening = asyncio.ensure_future(self.receive())
        self._listening.add_done_callback(self._heard)

    def _heard(self, listening: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        if not listening.cancelled() and not listening.exception() and listening.result()["type"] == "http.disconnect":
            self.cancel(ClientGone())


class ExchangeWatch:
    """The exchanges of one app.

    Args:
        body_timeout_s: seconds in which a body must have come.
    """

    def __init__(self, body_timeout_s: float) -> None:
        self._body_timeout_s = body_timeout_s
        self._reading: dict[Exchange, None] = {}  # oldest first, as the next one
        self._answering: dict[Exchange, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer runs

    def add(self, exchange: Exchange) -> None:
        """Follow an exchange, whose body is being read."""
        loop = asyncio.get_running_loop()
        exchange.since_s = loop.time()
        self._reading[exchange] = None
        if self._loop is not loop:  # an app can outlive a loop
            self._loop = loop
            loop.call_later(_EVERY_S, self._look, loop)

    def move(self, exchange: Exchange) -> None:
        """Follow the client of an exchange, whose body has come."""
        del self._reading[exchange]
        if self._loop is not None:
            exchange.since_s = self._loop.time()
        self._answering[exchange] = None

    def discard(self, exchange: Exchange) -> None:
        """Follow it no more."""
        self._reading.pop(exchange, None)
        self._answering.pop(exchange, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        now_s = loop.time()
        for exchange in _older(self._reading, now_s - self._body_timeout_s):
            exchange.cancel(
                RequestRejected(408, f"body: expected within {self._body_timeout_s} s", closes_connection=True)
            )
        for exchange in _older(self._answering, now_s - _EVERY_S):
            exchange.listen()
        if self._reading or self._answering:
            loop.call_later(_EVERY_S, self._look, loop)
        else:
            self._loop = None


def _older(exchanges: dict[Exchange, None], begin_s: float) -> list[Exchange]:
    """Take out those that began until then."""
    taken = []
    for exchange in exchanges:
        if exchange.since_s > begin_s:
            break
        taken.append(exchange)
    for exchange in taken:
        del exchanges[exchange]
    return taken
