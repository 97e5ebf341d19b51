"""Event loops that run in virtual time."""

import asyncio
from typing import Protocol, runtime_checkable

__all__ = ["TellsVirtualTime", "is_virtual"]


@runtime_checkable
class TellsVirtualTime(Protocol):
    """Event loop that states whether its time is virtual.

    Attributes:
        is_virtual: whether its time is virtual, so that no code may depend on real durations.
    """

    is_virtual: bool


def is_virtual(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether the loop's time is virtual."""
    return isinstance(loop, TellsVirtualTime) and loop.is_virtual
