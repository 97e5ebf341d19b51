"""Objects that have to be closed."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self, runtime_checkable

from streaminfer.request import Response

__all__ = ["AsyncClosable", "AsyncClosing", "close_answers", "close_dropped", "close_soon", "close_unread"]

_CLOSING: set[asyncio.Task[None]] = set()
"""The event loop itself does not hold its tasks."""


@runtime_checkable
class AsyncClosable(Protocol):
    """Object that can be closed, such as an asynchronous generator."""

    async def aclose(self) -> None:
        """End it, in any state."""


class AsyncClosing(ABC):
    """Object that is closed at the end of an ``async with`` around it."""

    @abstractmethod
    async def aclose(self) -> None:
        """End it, in any state."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def close_answers(response: Any) -> None:
    """Close the answers of a response, or those that outputs are, if they can be closed; nothing of other objects."""
    for answers in _answers_of(response):
        if isinstance(answers, AsyncClosable):
            await answers.aclose()


def close_soon(response: Any) -> "asyncio.Task[None]":
    """Close the answers of a response, or those that outputs are, in a task of its own."""
    closing = asyncio.ensure_future(close_answers(response))
    _CLOSING.add(closing)
    closing.add_done_callback(_CLOSING.discard)
    return closing


def close_unread(call: "asyncio.Future[Any]") -> None:
    """Close the answers of a call, or those of each row of a batch, if it has ended; nothing reads them."""
    if call.done() and not call.cancelled() and call.exception() is None:
        for answers in _answers_of(call.result()):
            close_soon(answers)


def close_dropped(outputs: Any) -> None:
    """Close outputs that are not delivered, if they are answers."""
    if isinstance(outputs, AsyncIterator):
        close_soon(outputs)


def _answers_of(response: Any) -> list[AsyncIterator[Any]]:
    """Return the answers of a response or of outputs, or of each row of a batch."""
    outputs = response.outputs if isinstance(response, Response) else response
    rows = outputs if isinstance(outputs, list) else [outputs]
    return [row for row in rows if isinstance(row, AsyncIterator)]
