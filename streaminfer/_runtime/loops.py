"""Event loops that run in virtual time."""

import asyncio

__all__ = ["is_virtual"]


def is_virtual(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's time is virtual, so that nothing may depend on how long anything really takes."""
    return bool(getattr(loop, "is_virtual", False))
