"""Event loops that run in virtual time."""

import asyncio
from typing import Protocol, runtime_checkable

__all__ = ["TellsVirtualTime", "is_virtual"]


@runtime_checkable
class TellsVirtualTime(Protocol):
    """Event loop that tells what its time is.

    Attributes:
        is_virtual: its time is virtual, so that nothing may depend on how long anything really takes.
    """

    is_virtual: bool


def is_virtual(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's time is virtual."""
    return isinstance(loop, TellsVirtualTime) and loop.is_virtual
