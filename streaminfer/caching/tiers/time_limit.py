"""Time limit of an operation of a tier."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["error_of_limit", "within"]

T = TypeVar("T")

_PROPAGATED = (Exception, KeyboardInterrupt, SystemExit, GeneratorExit)


async def within(limit_s: float, operation: Awaitable[T]) -> T:
    """Await an operation for at most ``limit_s`` seconds, then cancel it.

    Raises:
        TimeoutError: the operation took longer.
        RuntimeError: the operation was cancelled itself, or would end the task of its caller.
        Exception: the error of the operation.
    """
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            return await operation
    except BaseException as error:
        if limit.expired() and isinstance(error, TimeoutError):
            raise error_of_limit(error, limit, limit_s) from error
        task = asyncio.current_task()
        if isinstance(error, _PROPAGATED) or task is None or task.cancelling():
            raise
        raise RuntimeError(f"the tier: {error!r}") from error


def error_of_limit(error: Exception, limit: asyncio.Timeout, limit_s: float) -> Exception:
    """Return the error of an operation, or a `TimeoutError` that names the limit if the limit ended it."""
    return TimeoutError(f"it took longer than {limit_s:g} s") if limit.expired() else error
