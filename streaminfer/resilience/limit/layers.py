"""The concurrency limit in front of a service, a backend or a function."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from streaminfer._internal.units import NEVER_NS
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, Wrapper, adapt
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._targets import refuse_awaitable
from streaminfer.resilience.limit._guard_cy import LimitCore
from streaminfer.resilience.limit._state_machine_cy import FULL, INFEASIBLE
from streaminfer.sync_layer import SyncService

__all__ = ["LimitedBackend", "LimitedService", "QueuedService", "limit_async", "limit_sync"]

_UNBOUNDED = 2**31 - 1


class _Limited(Wrapper):
    """What a limited service and a limited backend have in common.

    Attributes:
        inner: what is limited.
        limit: the `ConcurrencyLimit`.
        name: of what is limited, so that its errors and answers name it.
    """

    def __init__(self, limit: LimitCore, inner: Any) -> None:
        super().__init__(inner, limit)
        self.limit = limit
        self._enter = limit.enter
        self._leave = limit.leave
        self._fail = limit.fail
        self._admission = adapt(inner).capabilities().admission

    def capabilities(self) -> Capabilities:
        """What the inner object offers, with the limit's answer to `admission`."""
        return super().capabilities()._replace(admission=self.admission)

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Whether a request would get a place, or may wait for one, and what stands behind says; changes nothing."""
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
    """A service with so many requests in flight at once; further ones are rejected."""

    def __init__(self, limit: LimitCore, inner: Any) -> None:
        super().__init__(limit, inner)
        self._waits = _tells_queueing(inner)

    async def call(self, request: Request) -> Response:
        """Serve the request without a `Stack`; as the inherited one does, in fewer calls.

        Raises:
            Overloaded: there is no permit.
            DeadlineExceeded: it would be late.
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
            Overloaded: there is none.
            DeadlineExceeded: it would be late.
        """
        return self._enter(request.priority, request.deadline_ns, request, self._admission)

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Give the permit back, and learn from the outcome."""
        if isinstance(outcome, BaseException):
            self._fail(token, outcome, request.deadline_ns)
        else:
            self._leave(token, outcome, self._waits)


class QueuedService(_Limited):
    """The same with a queue for requests that find no permit."""

    def __init__(self, limit: LimitCore, inner: Any) -> None:
        super().__init__(limit, inner)
        self._call: Callable[[Request], Any] = inner.call
        self._waits = _tells_queueing(inner)

    async def call(self, request: Request) -> Response:
        """Serve the request when there is a permit for it.

        Raises:
            Overloaded: there was none in time.
            DeadlineExceeded: it would be late.
        """
        permit = await self.limit._queue.enter(request.priority, request.deadline_ns, request, self._admission)
        try:
            response: Response = await self._call(request)
        except BaseException as error:
            self._fail(permit, error, request.deadline_ns)
            raise
        self._leave(permit, response, self._waits)
        return response


def _tells_queueing(inner: Any) -> bool:
    """Say whether the timings of a response tell queueing from service.

    A batcher with workers for all that comes keeps nothing waiting: its timings tell nothing.
    """
    workers = adapt(inner).capabilities().max_in_flight
    return workers is not None and workers < _UNBOUNDED


class LimitedBackend(_Limited):
    """A backend with a bound on the batches in flight; the limit is a fixed one."""

    def __init__(self, limit: LimitCore, inner: Any) -> None:
        super().__init__(limit, inner)
        self._infer: Callable[[Batch], Any] = inner.infer

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Answers the batch, if there is a place for it.

        Raises:
            Overloaded: there is none.
        """
        queue = self.limit._queue
        if queue is None:
            permit = self._enter(0, None, None, None)  # a batch was formed to be on time: its rows decided that
        else:
            permit = await queue.enter(0, batch.deadline_ns, None, None)
        try:
            results: Sequence[Any] = await self._infer(batch)
        except BaseException as error:
            self._fail(permit, error, batch.deadline_ns)
            raise
        self._leave(permit, None, False)
        return results


def limit_async(limit: LimitCore, function: Callable[..., Any]) -> Callable[..., Any]:
    """An async function around one: a real one, since that is what ``iscoroutinefunction`` asks for."""

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        queue = limit._queue
        permit = limit.enter(0, None, None, None) if queue is None else await queue.enter(0, None, None, None)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            limit.fail(permit, error, None)
            raise
        limit.leave(permit, None, False)
        return result

    return limited


def limit_sync(limit: LimitCore, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a sync function around one, which never waits for a permit."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        permit = limit.enter(0, None, None, None)
        try:
            result = function(*args, **kwargs)
            refuse_awaitable(function, result)
        except BaseException as error:
            limit.fail(permit, error, None)
            raise
        limit.leave(permit, None, False)
        return result

    return limited
