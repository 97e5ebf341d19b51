"""Wait for what a real server, thread or process does; in virtual time tests wait for events instead."""

import asyncio

__all__ = ["until"]

PATIENCE_S = 60.0
"""Only ever reached by a test that fails."""

PERIOD_S = 0.001


async def until(condition):
    """Return once a condition is true, which is looked at every millisecond."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(PERIOD_S)
