"""Wait for a real server, thread or process; tests in virtual time wait for events instead."""

import asyncio

__all__ = ["until"]

PATIENCE_S = 60.0
"""Only a test that fails reaches it."""

PERIOD_S = 0.001


async def until(condition):
    """Check a condition every millisecond, and return once it is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(PERIOD_S)
