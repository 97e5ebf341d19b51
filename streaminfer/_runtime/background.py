"""Tasks that run until they are cancelled, whatever is raised in them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from streaminfer._internal.error_log import ErrorLog

__all__ = ["RESTART_S", "keep_running"]

RESTART_S = 1.0
"""What fails at once, each time, takes little of the event loop."""


def keep_running(work: Callable[[], Coroutine[Any, Any, None]], what: str, logger: str) -> "asyncio.Task[None]":
    """Run work in a task of its own, and begin it again where it ends by an error, which is logged.

    Args:
        work: returns the coroutine; it expects and handles the usual errors itself.
        what: the subject of the message.
        logger: name of the log.
    """
    return asyncio.get_running_loop().create_task(_keep_running(work, what, logger), name=f"streaminfer {what}")


async def _keep_running(work: Callable[[], Coroutine[Any, Any, None]], what: str, logger: str) -> None:
    failures = ErrorLog(logger)
    while True:
        try:
            await work()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failures.report(what, error)
        else:
            return
        await asyncio.sleep(RESTART_S)
