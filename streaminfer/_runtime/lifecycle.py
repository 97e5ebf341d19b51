"""Starts and stops of the parts of a service, and the time limit of a stop.

A stop passes through layers, routes and replicas to the parts that wait for a thread, a process or a server. The time
limit travels in a context variable and not as an argument, so that parts that do not know of it pass it on too.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

from streaminfer._internal.error_log import ErrorLog, Log
from streaminfer._runtime.owners import last_owner, own, parts_of
from streaminfer.protocols import adapt

__all__ = [
    "KILL_GRACE_S",
    "RESTART_S",
    "STOP_LIMIT_S",
    "BegunTask",
    "end_tasks",
    "keep_running",
    "raise_first",
    "seconds_left",
    "start_all",
    "start_owned",
    "stop_all",
    "stop_together",
    "stop_within",
    "until_limit",
]

STOP_LIMIT_S = 30.0
"""Seconds that a stop waits for requests in flight by default."""

RESTART_S = 1.0
"""Seconds before failed work restarts, so that work that always fails at once takes little of the event loop."""

KILL_GRACE_S = 0.1
"""Seconds in which a thread must end after it was interrupted at the limit."""

_RETURN_GRACE_S = 0.15  # for a part that observes the limit itself to return
_CANCEL_GRACE_S = 0.25  # for a part that was cancelled at the limit to stop its inner parts

_log = Log("streaminfer")
_ends_at: ContextVar[float | None] = ContextVar("streaminfer_stop_ends_at", default=None)


@contextmanager
def stop_within(timeout_s: float | None) -> Iterator[None]:
    """Set the time limit of the stop that the block performs; an earlier limit of an outer stop remains.

    Args:
        timeout_s: seconds from now; ``None``: no additional limit.
    """
    ends_at = _ends_at.get()
    if timeout_s is not None:
        own = asyncio.get_running_loop().time() + timeout_s
        ends_at = own if ends_at is None else min(own, ends_at)
    token = _ends_at.set(ends_at)
    try:
        yield
    finally:
        _ends_at.reset(token)


def seconds_left(default: float | None = None) -> float | None:
    """Return the seconds until the limit of the current stop, ≥ 0; ``default`` without a limit."""
    ends_at = _ends_at.get()
    return default if ends_at is None else max(0.0, ends_at - asyncio.get_running_loop().time())


async def until_limit(waiting: Coroutine[Any, Any, object]) -> None:
    """Await a coroutine until the limit of the current stop, then cancel it."""
    with suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds_left())


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait for them until the limit of the current stop."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending, timeout=seconds_left())


def keep_running(work: Callable[[], Coroutine[Any, Any, None]], task_name: str, logger: str) -> "asyncio.Task[None]":
    """Run work in a separate task, and restart it if it ends with an error, which is logged.

    Args:
        work: returns the coroutine, which handles the usual errors itself.
        task_name: name of the task, and subject of the log message.
        logger: name of the log.
    """
    return asyncio.get_running_loop().create_task(
        _keep_running(work, task_name, logger), name=f"streaminfer {task_name}"
    )


async def _keep_running(work: Callable[[], Coroutine[Any, Any, None]], task_name: str, logger: str) -> None:
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
            failures.report(task_name, error)
        else:
            return
        await asyncio.sleep(RESTART_S)


async def start_all(owner: object, parts: Iterable[Any]) -> None:
    """Start each part once, in order, after the parts that it leaves to its owner; if one fails, stop the started ones.

    Raises:
        BaseException: the error of a part's ``start``.
    """
    started: list[Any] = []
    try:
        for each in {id(each): each for part in parts for each in parts_of(part)}.values():
            await own(owner, each)
            started.append(each)
    except BaseException:
        await stop_all(owner, started[::-1], drain=False)
        raise


async def start_owned(owner: object, part: Any) -> None:
    """Start one part, as :func:`start_all` does."""
    await start_all(owner, [part])


async def stop_all(owner: object, parts: Iterable[Any], *, drain: bool) -> None:
    """Stop each part, even if an earlier one fails; raise the first failure at the end, and log later ones.

    The parts that a part leaves to its owner are stopped too, after all parts around them. A part that has another
    owner is left running. A part that does not return by the limit is cancelled, and soon afterwards abandoned with a
    warning.
    """
    failures: list[BaseException] = []
    in_order_of_start = {id(each): each for part in list(parts)[::-1] for each in parts_of(part)}
    for part in list(in_order_of_start.values())[::-1]:
        node = adapt(part)
        if not node.stops:
            continue
        try:
            async with last_owner(owner, part) as last:
                if last:
                    await _stop(part, node.stop(drain=drain))
        except BaseException as error:  # noqa: BLE001 - raised below, after the others had their turn
            failures.append(error)
            drain = False  # a drain that failed or was cancelled is not repeated for the other parts
    raise_first(failures)


async def stop_together(stops: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Perform stops at the same time; raise the first failure at the end, and log later ones.

    A cancellation cancels each stop, but, unlike that of ``asyncio.gather``, never before the first step of the stop.
    """
    tasks = [BegunTask(_perform(stop)) for stop in stops]
    failures: list[BaseException] = []
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError as error:
        failures.append(error)
        if seconds_left() is None:
            await end_tasks(tasks)
        else:
            await _cancel_stops(tasks)
    ended = [task for task in tasks if task.done()]
    raise_first([*failures, *await asyncio.gather(*ended, return_exceptions=True)])


def raise_first(outcomes: Iterable[object]) -> None:
    """Raise the first exception among outcomes, if there is one, and log the others with their tracebacks."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in failures[1:]:
        if not isinstance(error, asyncio.CancelledError):
            _log.error("another part failed too: %s: %s", type(error).__name__, error, exc_info=error)
    if failures:
        raise failures[0]


class BegunTask(asyncio.Task[None]):
    """Task that cannot be cancelled before its first step, because then none of its clean-up would run.

    A loop that cancels all its tasks at its end could otherwise do so.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task, but not before its first step."""
        if inspect.getcoroutinestate(cast(Coroutine[Any, Any, None], self.get_coro())) != inspect.CORO_CREATED:
            return super().cancel(msg)
        self.get_loop().call_soon(self.cancel, msg)
        return True


async def _perform(stopping: Awaitable[None]) -> None:
    await stopping  # a coroutine of Python: `inspect` cannot tell the state of a compiled one


async def _stop(part: Any, stopping: Awaitable[None]) -> None:
    left_s = seconds_left()
    if left_s is None:
        await stopping
        return
    task = BegunTask(_perform(stopping))
    try:
        await asyncio.wait({task}, timeout=left_s)
        if not task.done():  # the grace begins now: a loop that was blocked until after the limit owes it to the part
            await asyncio.wait({task}, timeout=_RETURN_GRACE_S)
    except asyncio.CancelledError:
        await _cancel_stops([task])
        raise
    if not task.done() and await _cancel_stops([task]):
        raise asyncio.CancelledError
    if not task.done():
        _log.warning("%r did not stop within its time limit: it is abandoned", part)
    elif not task.cancelled():
        task.result()
    else:
        _log.warning("%r did not stop within its time limit: its stop was cancelled", part)


async def _cancel_stops(tasks: Iterable[asyncio.Future[None]]) -> bool:
    """Cancel stops, and wait until they have stopped their inner parts, or until their time for that is over.

    Returns:
        Whether the caller was cancelled meanwhile. That does not end the wait at once: at a limit, each level of a
        stack cancels its inner parts, so the innermost parts are cancelled several times.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + (seconds_left() or 0.0) + _CANCEL_GRACE_S
    pending = set(tasks)
    for task in pending:
        task.cancel()
    was_cancelled = False
    while pending and (left_s := ends_at - loop.time()) > 0:
        try:
            _, pending = await asyncio.wait(pending, timeout=left_s)
        except asyncio.CancelledError:
            was_cancelled = True
            ends_at = min(ends_at, loop.time() + _CANCEL_GRACE_S)
    return was_cancelled
