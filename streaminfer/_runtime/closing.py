"""Objects that have to be closed."""

from abc import ABC, abstractmethod
from typing import Protocol, Self, runtime_checkable

__all__ = ["AsyncClosable", "AsyncClosing"]


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
