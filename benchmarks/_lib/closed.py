"""Saturation: responses per second of a closed loop."""

import time

from streaminfer.loadtest.sending.loops import Call, closed_loop

__all__ = ["answers_per_second"]


async def answers_per_second(call: Call, callers: int, seconds: float) -> float:
    """Return responses per second of callers that each send the next request as soon as they have a response."""
    started = time.monotonic()
    answered = len(await closed_loop(call, callers, seconds))
    return answered / (time.monotonic() - started)
