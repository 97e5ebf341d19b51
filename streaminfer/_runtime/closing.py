"""Closing of streamed outputs and other objects with ``aclose``."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self, runtime_checkable

from streaminfer.request import Response

__all__ = ["AsyncClosable", "AsyncClosing", "close_answers", "close_dropped", "close_soon", "close_unread"]

_CLOSING: set[asyncio.Task[None]] = set()
"""References to running tasks, because the event loop itself holds only weak ones."""


@runtime_checkable
class AsyncClosable(Protocol):
    """Object that can be closed, such as an asynchronous generator."""

    async def aclose(self) -> None:
        """Close the object, in any state."""


class AsyncClosing(ABC):
    """Object that an ``async with`` block closes at its end."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the object, in any state."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def close_answers(response: Any) -> None:
    """Close the streamed outputs in a response, or in outputs, if they can be closed; ignore other objects."""
    for answers in _answers_of(response):
        if isinstance(answers, AsyncClosable):
            await answers.aclose()


def close_soon(response: Any) -> "asyncio.Task[None]":
    """Close the streamed outputs in a response, or in outputs, in a separate task."""
    closing = asyncio.ensure_future(close_answers(response))
    _CLOSING.add(closing)
    closing.add_done_callback(_CLOSING.discard)
    return closing


def close_unread(call: "asyncio.Future[Any]") -> None:
    """Close the streamed outputs of a finished call, or of each row of a batch, which no caller will read."""
    if call.done() and not call.cancelled() and call.exception() is None:
        for answers in _answers_of(call.result()):
            close_soon(answers)


def close_dropped(outputs: Any) -> None:
    """Close outputs that are not delivered, if they are streamed."""
    if isinstance(outputs, AsyncIterator):
        close_soon(outputs)


def _answers_of(response: Any) -> list[AsyncIterator[Any]]:
    """Return the streamed outputs in a response or in outputs, or in each row of a batch."""
    outputs = response.outputs if isinstance(response, Response) else response
    rows = outputs if isinstance(outputs, list) else [outputs]
    return [row for row in rows if isinstance(row, AsyncIterator)]
