"""One run of a `Stack`, from the start of its layers to their stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer._internal.loading import compiled_modules
from streaminfer._runtime import serving_process
from streaminfer._runtime.lifecycle import STOP_LIMIT_S, end_tasks, seconds_left, stop_all, stop_within
from streaminfer._runtime.loops import is_virtual
from streaminfer._runtime.owners import own
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer._stack.many_calls import PlaceQueue
from streaminfer.errors import DeadlineExceeded
from streaminfer.request import Request, Response, passed_on_arrival, time_left_s

if TYPE_CHECKING:
    from streaminfer._stack._chain_cy import Chain
    from streaminfer._stack.served_stack import ServedStack
    from streaminfer._stack.start_report import StartReport
    from streaminfer._stack.statistics import StackState

__all__ = ["StackRun"]

_FAILURES = ErrorLog("streaminfer")
_END_GRACE_S = 0.1  # for requests that end after the parts have stopped


class StackRun:
    """Run of a stack from a start to its stop; belongs to the event loop that makes it.

    Args:
        stack: the stack, which owns the parts.
        parts: the parts to start, innermost first.

    Attributes:
        loop: event loop of the run.
        pid: process of the run.
        state: state of the stack.
        report: durations of the starts of the parts; ``None`` until they have started.
        calls: calls that the stack itself ends at their deadline.
        places: callers that wait for room in the queue.
    """

    def __init__(self, stack: ServedStack, parts: Sequence[Any]) -> None:
        self.loop = _running_loop()
        self.pid = os.getpid()
        self.state: StackState = "starting"
        self.report: StartReport | None = None
        self.calls = DeadlineCalls()
        self.places = PlaceQueue(stack)
        self._stack = stack
        self._parts = parts
        self._stopped = asyncio.Event()
        self._hold: object = None

    @property
    def is_orphaned(self) -> bool:
        """True if its loop was closed without a stop, or this is a forked process."""
        return self.loop.is_closed() or os.getpid() != self.pid

    def enforcing(self, call: Callable[[Request], Coroutine[Any, Any, Response]]) -> Callable[..., Awaitable[Response]]:
        """Return a service's ``call`` that ends at the deadline of its request, with one timer per call."""

        async def call_enforced(request: Request) -> Response:
            now_ns = self._stack.clock()
            if request.deadline_ns is not None and request.deadline_ns <= now_ns:
                raise DeadlineExceeded(passed_on_arrival(now_ns, request.deadline_ns))
            return await self.calls.end_within(time_left_s(request.deadline_ns, now_ns), call(request), "the stack")

        return call_enforced

    async def start(self, title: str, names: Sequence[str]) -> None:
        """Start the parts; if one fails, stop those that started.

        Args:
            title: title of the report.
            names: names of the parts in the report.
        """
        from streaminfer._stack.start_report import StartTimer  # noqa: PLC0415 - not at the package's import

        started: list[Any] = []
        try:
            with StartTimer(title) as timer:
                if not is_virtual(self.loop):  # speed does not matter in virtual time
                    compiled_modules.warn_if_unused()
                with timer.time(None, "kernels"):
                    await self._stack.load_kernels()  # before the heap is frozen
                self._hold = serving_process.enter(self.loop)
                for part, name in zip(self._parts, names, strict=True):
                    with timer.time(part, name):
                        await own(self._stack, part)
                    started.append(part)
            self._load_snapshots(title)
        except BaseException:
            self.state = "stopping"  # so that another start does not use parts that are about to stop
            try:
                with stop_within(STOP_LIMIT_S):
                    await stop_all(self._stack, started[::-1], drain=False)
            finally:
                self._end()
            raise
        self.report = timer.report()
        self.state = "running"

    def _load_snapshots(self, title: str) -> None:
        """Take a snapshot now, because the first one loads modules, which must not delay requests."""
        try:
            self._stack.statistics()
        except LISTENER_ERRORS as error:  # of a user's layer, which can serve without statistics
            _FAILURES.report(f"statistics() of the {title}", error)

    async def stop(self, chain: Chain, *, drain: bool, timeout_s: float | None) -> None:
        """Stop the parts, outermost first; a second call waits for the first.

        Args:
            chain: chain of the stack; it accepts no more requests.
            drain: whether to complete the requests in flight first.
            timeout_s: time limit of the stop; ``None``: no separate limit.
        """
        if self.state == "stopping":
            await self._stopped.wait()
            return
        self.state = "stopping"
        self.places.close()
        try:
            with stop_within(timeout_s):
                await self._stop(chain, drain)
        finally:
            self._end()

    async def _stop(self, chain: Chain, drain: bool) -> None:
        """Drain, end the calls and stop the layers; each step happens even if an earlier one fails."""
        try:
            try:
                if drain:
                    await self._until_idle(chain, seconds_left())
            finally:
                await end_tasks(self.calls)
        except BaseException:
            drain = False
            raise
        finally:
            try:
                await stop_all(self._stack, self._parts[::-1], drain=drain)
            finally:
                chain.end_requests()
                await self._until_idle(chain, _END_GRACE_S)

    async def _until_idle(self, chain: Chain, timeout_s: float | None) -> None:
        if chain.in_flight():
            chain.idle = self.loop.create_future()
            await asyncio.wait({chain.idle}, timeout=timeout_s)

    def _end(self) -> None:
        serving_process.leave(self._hold)
        self.state = "stopped"
        self._stopped.set()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "a stack runs on an event loop of asyncio, and here none runs: "
            "code of trio, as synchronous code, calls `with stack.blocking() as infer` in threads"
        ) from None
