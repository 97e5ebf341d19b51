"""The concurrency limit around a service, a backend or a function."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Wrapper, adapt
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._targets import reject_awaitable
from streaminfer.resilience.limit._guard_cy import LimitCore
from streaminfer.resilience.limit._state_machine_cy import FULL, INFEASIBLE
from streaminfer.sync_layer import SyncService

__all__ = ["LimitedBackend", "LimitedService", "QueuedService", "limit_async", "limit_sync"]

_UNBOUNDED = 2**31 - 1


class _Limited(Wrapper):
    """Common base of a limited service and a limited backend.

    Attributes:
        inner: the limited object.
        limit: the `ConcurrencyLimit`.
        name: name of the limited object, for errors and responses.
    """

    def __init__(self, limit: LimitCore, inner: Any) -> None:
        super().__init__(inner, limit)
        self.limit = limit
        self._enter = limit.enter
        self._leave = limit.leave
        self._fail = limit.fail
        capabilities = adapt(inner).capabilities()
        self._admission = capabilities.admission
        # whether the timings of a response separate queueing from service: a batcher with workers for all requests
        # never queues them, so its timings show nothing
        self._waits = capabilities.max_in_flight is not None and capabilities.max_in_flight < _UNBOUNDED

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner object, with the `admission` of the limit."""
        return super().capabilities()._replace(admission=self.admission)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return whether a request would get a permit or may wait for one, and the inner admission; changes nothing."""
        machine = self.limit._machine
        deadline_ns = NEVER_NS if request.deadline_ns is None else request.deadline_ns
        verdict = machine.check(request.priority, deadline_ns, now_ns)
        queue = self.limit._queue
        if verdict == FULL and (queue is None or not queue.accepts(request.priority, deadline_ns, now_ns)):
            return Admission(False, AdmissionReason.LIMIT, machine.drain_ns(now_ns) / 1e9 or None)
        if verdict == INFEASIBLE:
            return Admission(False, AdmissionReason.INFEASIBLE, machine.drain_ns(now_ns) / 1e9 or None)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)


class LimitedService(_Limited, SyncService):
    """A service with a limit on requests in flight; further requests are rejected."""

    async def call(self, request: Request) -> Response:
        """Serve the request without a `Stack`; as the inherited one does, in fewer calls.

        Raises:
            Overloaded: there is no permit.
            DeadlineExceeded: the request would be late.
        """
        permit = self._enter(request.priority, request.deadline_ns, request, self._admission)
        try:
            response = await self._call(request)
        except BaseException as error:
            self._fail(permit, error, request.deadline_ns)
            raise
        self._leave(permit, response, self._waits)
        return response

    @property
    def clock(self) -> Clock:
        """Return the clock of the limit."""
        return self.limit._clock or time.monotonic_ns

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - the limit reads its clock
        """Take a permit.

        Raises:
            Overloaded: there is no permit.
            DeadlineExceeded: the request would be late.
        """
        return self._enter(request.priority, request.deadline_ns, request, self._admission)

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Give the permit back, and learn from the outcome."""
        if isinstance(outcome, BaseException):
            self._fail(token, outcome, request.deadline_ns)
        else:
            self._leave(token, outcome, self._waits)


class QueuedService(_Limited):
    """A limited service with a queue for requests that find no permit."""

    async def call(self, request: Request) -> Response:
        """Serve the request when there is a permit for it.

        Raises:
            Overloaded: there was no permit in time.
            DeadlineExceeded: the request would be late.
        """
        permit = await self.limit._queue.enter(request.priority, request.deadline_ns, request, self._admission)
        try:
            response: Response = await self.inner.call(request)
        except BaseException as error:
            self._fail(permit, error, request.deadline_ns)
            raise
        self._leave(permit, response, self._waits)
        return response


class LimitedBackend(_Limited):
    """A backend with a fixed limit on the batches in flight."""

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Run the batch if there is a permit for it.

        Raises:
            Overloaded: there is no permit.
        """
        queue = self.limit._queue
        if queue is None:
            permit = self._enter(0, None, None, None)  # no deadline: the batcher has checked those of the rows
        else:
            permit = await queue.enter(0, batch.deadline_ns, None, None)
        try:
            results: Sequence[Any] = await self.inner.infer(batch)
        except BaseException as error:
            self._fail(permit, error, batch.deadline_ns)
            raise
        self._leave(permit, None, False)
        return results


def limit_async(limit: LimitCore, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async function around one: a real async function, because ``iscoroutinefunction`` tests for it."""

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        async with limit.guard():
            return await function(*args, **kwargs)

    return limited


def limit_sync(limit: LimitCore, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a sync function around one, which never waits for a permit."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        with limit.guard():
            result = function(*args, **kwargs)
            reject_awaitable(function, result)
            return result

    return limited
