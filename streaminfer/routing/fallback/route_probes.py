"""Copies of requests that find out whether a route is still too slow."""

import asyncio
import functools

from streaminfer._internal.error_log import ErrorLog
from streaminfer._runtime.closing import close_answers
from streaminfer._runtime.lifecycle import end_tasks
from streaminfer.errors import CircuitOpen, Closed, Overloaded
from streaminfer.protocols import Clock
from streaminfer.request import Request
from streaminfer.routing.fallback._route_share_cy import IGNORED
from streaminfer.routing.fallback.route_state import RouteState

__all__ = ["RouteProbes"]

_TIMEOUT_FACTOR = 10  # time of a probe, as a multiple of the time of its request
_REJECTIONS = (CircuitOpen, Closed, Overloaded, TimeoutError)


class RouteProbes:
    """Sends copies of requests to idle routes that predict only late responses.

    A route learns its predictions from its responses. A route that rejects every request has no responses and would
    never learn that it is fast again.

    Args:
        idle_ns: how long a route must have been without requests.
        clock: returns monotonic nanoseconds.
    """

    def __init__(self, idle_ns: int, clock: Clock) -> None:
        self._idle_ns = idle_ns
        self._clock = clock
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, so that a run in virtual time repeats
        self._errors = ErrorLog("streaminfer.routing")

    def consider(self, state: RouteState, request: Request, now_ns: int) -> None:
        """Send a copy of a request that a route rejected, if the route is idle and the request can be sent twice."""
        share = state.share
        if (
            not share.last
            and share.in_flight == 0
            and now_ns - share.idle_since_ns >= self._idle_ns
            and request.stream_id is None
            and state.is_idempotent
        ):
            self._send(state, request, now_ns)

    async def end(self) -> None:
        """Cancel all probes, and wait for them until the limit of the stop."""
        await end_tasks(self._tasks)

    def _send(self, state: RouteState, request: Request, now_ns: int) -> None:
        left_ns = max((request.deadline_ns or now_ns) - now_ns, 1)
        copy = request.replace(deadline_ns=now_ns + _TIMEOUT_FACTOR * left_ns, store=False)
        state.share.take()
        state.probes += 1
        task = asyncio.get_running_loop().create_task(self._probe(state, copy, _TIMEOUT_FACTOR * left_ns / 1e9))
        self._tasks[task] = None
        task.add_done_callback(functools.partial(self._end, state))

    def _end(self, state: RouteState, task: asyncio.Task[None]) -> None:
        # not in the task: a task that is cancelled before its first step runs none of its code
        self._tasks.pop(task, None)
        state.share.settle(IGNORED, 0, 0, self._clock())

    async def _probe(self, state: RouteState, request: Request, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await close_answers(await state.call(request))
        except Exception as error:  # noqa: BLE001 - counted, and logged unless the route only rejected the probe
            state.skipped["probe_failed"] += 1
            if not isinstance(error, _REJECTIONS):
                self._errors.report(f"the probe of route {state.route.name!r}", error)
