"""`Shadow`: sends copies of requests to another service and discards its responses.

*Design.* A copy runs in its own task with an empty context, so it does not take part in anything that the request
belongs to: a computation that callers share, the time limit of a stop, a trace. The request itself is sent first and
does not wait for the copy. At most ``max_in_flight`` copies are in flight, so that slow copies do not pile up; further
copies are not sent.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from streaminfer._internal.error_log import Log
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_count, check_duration, check_instance, expected
from streaminfer._runtime.closing import close_answers
from streaminfer._runtime.lifecycle import end_tasks, start_owned, stop_all
from streaminfer._runtime.pending_calls import DeadlineCalls
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.errors import DeadlineExceeded
from streaminfer.protocols import Clock, adapt, is_service, name_of
from streaminfer.request import Request, Response, time_left_s
from streaminfer.resilience._targets import may_repeat, repeats
from streaminfer.routing.fallback.route import as_service
from streaminfer.routing.split.share import RequestShare, check_share
from streaminfer.sync_layer import SyncService

__all__ = ["Shadow", "ShadowStatistics"]

_log = Log("streaminfer.routing")
_MAX_COPIES = 100_000


@attrs.frozen(kw_only=True)
class ShadowStatistics(Snapshot):
    """Counters of a `Shadow` at one moment.

    Counting rule: each copy is counted in ``sent``, and when it ends, in one of ``succeeded``, ``failed`` and
    ``cancelled``.

    Attributes:
        name: name of the shadow.
        sent: copies that were sent.
        in_flight: how many of them have not ended.
        succeeded: how many succeeded.
        failed: how many ended with an error, or at their deadline.
        cancelled: how many a stop ended.
        skipped: requests of the share that were not copied: ``"max_in_flight"``, too many copies were in flight;
            ``"not_repeatable"``, the request belongs to a stream.
    """

    name: str
    sent: int
    in_flight: int
    succeeded: int
    failed: int
    cancelled: int
    skipped: Mapping[str, int]


class Shadow(StackClock):
    """Sends copies of requests to another service and discards its responses; callers notice nothing.

    A shadow is a layer around a service; it starts and stops the service that gets the copies.

    Args:
        copy: the service that gets the copies: a `Stack`, any other service, a backend, or a sequence of layers,
            outermost first, that ends with one.
        share: share of the requests to copy, from 0 to 1, evenly spread.
        max_in_flight: maximum number of copies in flight; further requests are not copied.
        timeout_s: seconds after which a copy is cancelled, unless the deadline of its request is earlier.
        name: for reports and the log.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or a ``copy`` that declares
            ``idempotent = False``: it must not see a request that another service serves.

    Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        copy: Any,
        *,
        share: float = 1.0,
        max_in_flight: int = 10,
        timeout_s: float = 10.0,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.copy = as_service(copy, "copy")
        self._rule = repeats(self.copy, None)
        if self._rule is False:
            raise ValueError(expected("copy", "a service that may see copies (not idempotent = False)", copy))
        check_instance("name", name, str, "a string")
        self._share = RequestShare(check_share(share), name)
        self._max_in_flight = check_count("max_in_flight", max_in_flight, at_most=_MAX_COPIES)
        self._timeout_s = check_duration("timeout_s", timeout_s, positive=True)
        self.name = name
        self._clock: Clock = self._accept_clock(clock) or time.monotonic_ns
        self._validate = adapt(self.copy).capabilities().validate
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, so that a run in virtual time repeats
        self._calls = DeadlineCalls()
        self._skipped = {"max_in_flight": 0, "not_repeatable": 0}
        self._counts = dict.fromkeys(("sent", "succeeded", "failed", "cancelled"), 0)
        if self._clock_given:
            adapt(self.copy).bind_clock(self._clock)

    def wrap(self, inner: Any) -> Any:
        """Wrap a service.

        Returns:
            A service that responds as ``inner`` does.

        Raises:
            TypeError: no service.
        """
        check_instance("inner", inner, is_service, "a service (the shadow wraps the batcher)")
        return _ShadowedService(inner, self)

    @property
    def children(self) -> Mapping[str, Any]:
        """The service that gets the copies."""
        return {"shadow": self.copy}

    def _use_clock(self, clock: Clock) -> None:
        self._clock = clock
        adapt(self.copy).bind_clock(clock)

    def statistics(self) -> ShadowStatistics:
        """Return a frozen snapshot."""
        return ShadowStatistics(name=self.name, in_flight=len(self._tasks), skipped=dict(self._skipped), **self._counts)

    def send(self, request: Request) -> None:
        """Send a copy of a request, if it belongs to the share and can be copied."""
        if not self._share.take():
            return
        if not may_repeat(request, self._rule):
            self._skipped["not_repeatable"] += 1
        elif len(self._tasks) >= self._max_in_flight:
            self._skipped["max_in_flight"] += 1
        else:
            self._counts["sent"] += 1
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._serve(request), context=contextvars.Context())
            self._tasks[task] = None
            task.add_done_callback(self._end)

    async def _serve(self, request: Request) -> None:
        if self._validate is not None:
            self._validate(request)
        left_s = time_left_s(request.deadline_ns, self._clock())
        timeout_s = self._timeout_s if left_s is None else min(max(left_s, 0.0), self._timeout_s)
        call = asyncio.ensure_future(self.copy.call(request))
        try:
            await close_answers(await self._calls.end_within(timeout_s, call, name_of(self.copy)))
        except DeadlineExceeded:
            if not call.done():  # a call that does not end at once stays in flight until it ends
                await asyncio.wait({call})
            raise
        finally:
            del call  # it holds the error, whose traceback holds this frame

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if task.cancelled():
            self._counts["cancelled"] += 1
            return
        failure = task.exception()
        if failure is None:
            self._counts["succeeded"] += 1
            return
        self._counts["failed"] += 1
        if self._counts["failed"] == 1:
            message = "shadow %r: a copy of a request failed (later failures are counted only)"
            _log.warning(message, self.name, exc_info=failure)

    def __repr__(self) -> str:
        return f"<Shadow({self._share.share:.1%} of the requests to {self.copy!r})>"


class _ShadowedService(SyncService):
    """A service whose requests are copied."""

    layer: Shadow

    @property
    def clock(self) -> Clock:
        return self.layer._clock

    def enter(self, request: Request, now_ns: int) -> None:  # noqa: ARG002 - a copy has its own instants
        """Send a copy in a task, which begins after the request itself was sent."""
        self.layer.send(request)

    def exit(self, request: Request, token: None, outcome: Response | BaseException, now_ns: int) -> None:
        """Do nothing: the response does not depend on the copy."""

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The service that responds."""
        return (self.inner,)

    async def start(self) -> None:
        """Start the service that gets the copies."""
        await start_owned(self, self.layer.copy)

    async def stop(self, *, drain: bool = True) -> None:
        """End the copies and stop the service that gets them."""
        try:
            await end_tasks([*self.layer._tasks, *self.layer._calls])
        finally:
            await stop_all(self, [self.layer.copy], drain=drain)
