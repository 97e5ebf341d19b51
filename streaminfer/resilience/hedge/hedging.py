"""`Hedge`: sends a second request if the first one takes longer than most, so that slow responses are rare.

*Design* (Dean and Barroso, The Tail at Scale, 2013). If the first request has taken longer than 95 % of recent ones, a
second request is sent; the first response wins and the other request is cancelled. The load grows by about 5 %, and
slow responses become rare: one in thousands instead of one in a hundred.

*Delay.* The delay is a live quantile of the durations of first requests over the last minute. A first request that lost
counts with the time from its start to its cancellation. Otherwise slow requests would be missing, and the delay would
shrink until every request was hedged. With fewer than ``1 / (1 - quantile)`` durations there is no such quantile, and
no hedge.

*Budget.* When the service is slow, every request is slower than the quantile of a minute ago. To hedge all requests
would double the load just then. So extra requests are granted as a share of traffic (``_call_budget_cy``), and only if
the service's ``admission`` accepts them.

*Race.* Each request that may be hedged runs in its own task. The first response ends the race. A failure does not end
it while another request is in flight. A failure before any hedge is raised at once, because `RetryBudget` repeats
failures. The losing request is cancelled, and usually ends before the caller gets the response. If it does not end at
once, the hedge does not wait for it, because its slowness is the reason for the hedge. Its exception is retrieved, and
``stop`` waits for it.

*Complexity.* A task and a timer for each request that may be hedged.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.locking import thread_safe
from streaminfer._internal.own_arrays import own_arrays
from streaminfer._internal.validation import check_duration, check_instance, check_number, expected
from streaminfer._runtime.closing import close_unread
from streaminfer._runtime.lifecycle import start_owned, stop_all, until_limit
from streaminfer._runtime.response_source import nested_source
from streaminfer._runtime.stack_clock import StackClock
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.protocols import Admission, Backend, Capabilities, Clock, P, R, Service, Wrapper, adapt
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._call_budget_cy import CallBudget
from streaminfer.resilience._targets import may_repeat, reject_copy, repeats
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram

if TYPE_CHECKING:
    from streaminfer.resilience.hedge.statistics import HedgeStatistics

__all__ = ["Hedge"]

_Budget: type[CallBudget] = thread_safe(CallBudget)
_REPLICA = "hedge"  # label of `to` among the children, and route of its responses
_REFRESH_NS = 50_000_000
_DIGITS = 2
_RESOLUTION_FACTOR = 1.0 + 10.0**-_DIGITS  # the delay exceeds the quantile by the resolution of the histogram


class Hedge(StackClock):
    """Sends a second request if the first response takes long, and returns the response that comes first.

    Wrap a service, a backend or an async function with :meth:`wrap` or as a decorator. All uses of one object share
    delay and budget. A request is never sent twice if the second response would miss the deadline. Unless
    ``idempotent`` is true, it is not sent twice if it belongs to a live stream or its service declares
    ``idempotent = False``.

    Args:
        quantile: quantile of the durations of the last minute after which a first request is hedged, above 0, below 1.
        min_delay_s: shortest time after which a request is hedged.
        max_extra: extra requests per request over the last ten seconds, above 0 and at most 1.
        to: the replica that gets the extra requests: the same kind of object as the wrapped one. The hedge starts and
            stops it. The source of a service's response is then ``hedge/`` and the source that ``to`` gave it.
            ``None``: the wrapped object gets them too.
        idempotent: whether requests may be sent twice. ``None``: as the service's ``idempotent`` declares, else all
            requests that belong to no live stream. True: all requests. False: no request.
        name: for reports.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Not thread-safe: one event loop at a time.
    """

    def __init__(
        self,
        *,
        quantile: float = 0.95,
        min_delay_s: float = 0.001,
        max_extra: float = 0.05,
        to: Any = None,
        idempotent: bool | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.quantile = check_number("quantile", quantile, "a share above 0 and below 1", lambda it: 0.0 < it < 1.0)
        extra = check_number("max_extra", max_extra, "a share above 0 and at most 1", lambda it: 0.0 < it <= 1.0)
        self._min_delay_s = check_duration("min_delay_s", min_delay_s)
        check_instance("idempotent", idempotent, bool | None, "True, False or None")
        check_instance("name", name, str, "a string")
        clock = self._accept_clock(clock)
        self._to_kind = None if to is None else _kind_of("to", to)
        self.to: Any = to
        self.idempotent = idempotent
        self.name = name
        self._budget = _Budget(extra, 0.0)
        self._durations = RollingHistogram(clock=clock, significant_digits=_DIGITS)
        self._least_count = math.ceil(round(1.0 / (1.0 - self.quantile), 6))
        self._clock: Clock = clock or time.monotonic_ns
        if clock is not None and to is not None:
            adapt(to).bind_clock(clock)
        self._delay_s: float | None = None
        self._usual_ns = 0.0
        self._measure_ns = 0
        self._counts = dict.fromkeys(("won", "rejected", "infeasible"), 0)
        self._cancelling: set[asyncio.Task[Any]] = set()
        self._errors = ErrorLog("streaminfer.resilience")

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a service, a backend or an async function; also as a decorator, ``@hedge``.

        Args:
            inner: a service, a backend (its whole batch is sent twice) or an async function.

        Returns:
            The same kind of object.

        Raises:
            TypeError: ``inner`` is none of these, or of another kind than ``to``.
        """
        kind = _kind_of("inner", inner)
        if self._to_kind is not None and self._to_kind != kind:
            raise TypeError(expected("inner", f"a {self._to_kind}, as `to` is", inner))
        kinds = {"service": _HedgedService, "backend": _HedgedBackend, "async function": _hedge_function}
        return kinds[kind](self, inner)

    __call__ = wrap

    @property
    def delay_s(self) -> float | None:
        """Seconds after which a request is hedged; ``None``: there are too few durations yet."""
        self._measure(self._clock())
        return self._delay_s

    @property
    def children(self) -> Mapping[str, Any]:
        """The replica that gets the extra requests."""
        return {} if self.to is None else {_REPLICA: self.to}

    def _use_clock(self, clock: Clock) -> None:
        self._clock = clock
        self._durations.bind_clock(clock)
        self._measure_ns = 0
        adapt(self.to).bind_clock(clock)

    def statistics(self) -> HedgeStatistics:
        """Return a frozen snapshot."""
        from streaminfer.resilience.hedge.statistics import HedgeStatistics  # noqa: PLC0415 - serving does not need it

        return HedgeStatistics(
            name=self.name,
            requests=self._budget.requests,
            hedges=self._budget.granted,
            throttled=self._budget.throttled,
            cancelling=len(self._cancelling),
            delay_s=self.delay_s,
            **self._counts,
        )

    async def settle(self) -> None:
        """Wait until every cancelled request has ended."""
        while self._cancelling:
            await asyncio.wait(self._cancelling)

    __reduce__ = reject_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<Hedge({name}{self._budget.granted} extra of {self._budget.requests} requests)>"

    # -- the race -----------------------------------------------------------------------------------------------

    def _measure(self, now_ns: int) -> None:
        """Update the delay and the usual duration from the histogram, at intervals."""
        if now_ns < self._measure_ns:
            return
        if self._durations.count < self._least_count:
            self._delay_s = None
            return  # the next request tries again: few durations are cheap to count
        self._measure_ns = now_ns + _REFRESH_NS
        usual_s, delay_s = self._durations.quantiles([0.5, self.quantile])
        self._usual_ns = float(usual_s) * 1e9
        self._delay_s = max(float(delay_s) * _RESOLUTION_FACTOR, self._min_delay_s)

    async def _run(
        self,
        send: Callable[[], Awaitable[Any]],
        send_again: Callable[[], Awaitable[Any]] | None,
        deadline_ns: int | None = None,
        admits: Callable[[int], Admission] | None = None,
    ) -> Any:
        """Return the first response of one request and, if that takes long, of an extra one.

        Args:
            send: sends the request.
            send_again: sends the request once more; ``None``: it may not be sent twice.
            deadline_ns: deadline of the request.
            admits: the admission of the service that would get the extra request.
        """
        now_ns = self._clock()
        self._budget.count(now_ns)
        self._measure(now_ns)
        if self._delay_s is None or send_again is None:
            response = await send()
            self._durations.record_ns(max(self._clock() - now_ns, 0))
            return response
        ended, first_has_failed = await self._race(send, send_again, deadline_ns, admits)
        try:
            if not first_has_failed:
                self._durations.record_ns(max(self._clock() - now_ns, 0))
            return ended.result()
        finally:
            del ended  # it holds the error, whose traceback holds this frame

    async def _race(
        self,
        send: Callable[[], Awaitable[Any]],
        send_again: Callable[[], Awaitable[Any]],
        deadline_ns: int | None,
        admits: Callable[[int], Admission] | None,
    ) -> tuple[asyncio.Task[Any], bool]:
        """Return the request that responded first, else the one that failed first; and whether the first one failed."""
        loop = asyncio.get_running_loop()
        first = loop.create_task(_await(send))
        requests = [first]  # in order, so that a run in virtual time repeats
        failed: list[asyncio.Task[Any]] = []
        winner: asyncio.Task[Any] | None = None
        try:
            try:
                ended, running = await asyncio.wait(requests, timeout=self._delay_s)
                if not ended:
                    if self._grants(deadline_ns, admits):
                        requests.append(loop.create_task(_await(send_again)))
                    ended, running = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                failed += [one for one in requests if one in ended and _has_failed(one)]
                if running and len(failed) == len(ended):  # the other request may still respond
                    await asyncio.wait(running)
                    failed += filter(_has_failed, running)
                winner = next((one for one in requests if one.done() and one not in failed), None)
            finally:
                await self._cancel([one for one in requests if one is not winner and one not in failed])
        except BaseException:  # its caller has cancelled it
            if winner is not None:
                close_unread(winner)
            raise
        self._counts["won"] += winner is not None and winner is not first
        return winner or failed[0], first in failed

    def _grants(self, deadline_ns: int | None, admits: Callable[[int], Admission] | None) -> bool:
        """Return whether an extra request may be sent now."""
        now_ns = self._clock()
        if deadline_ns is not None and now_ns + self._usual_ns >= deadline_ns:
            self._counts["infeasible"] += 1
            return False
        try:
            accepts = admits is None or admits(now_ns).ok
        except Exception as error:  # noqa: BLE001 - logged: the first request continues
            self._errors.report("admission of the hedged service", error)
            accepts = False
        if not accepts:
            self._counts["rejected"] += 1
            return False
        return bool(self._budget.grant(now_ns))

    async def _cancel(self, requests: Collection[asyncio.Task[Any]]) -> None:
        for task in requests:
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)
            task.add_done_callback(close_unread)  # which also marks its error as retrieved
            task.cancel()
        if requests:
            await asyncio.wait(requests, timeout=0)  # most end in this turn


def _has_failed(request: asyncio.Task[Any]) -> bool:
    return request.cancelled() or request.exception() is not None


async def _await(call: Callable[[], Awaitable[Any]]) -> Any:
    """Await a request in a coroutine for its task, because a plain ``call`` or ``infer`` may return a future."""
    return await call()


class _Hedged(Wrapper):
    def __init__(self, hedge: Hedge, inner: Any) -> None:
        super().__init__(inner, hedge)
        self.hedge = hedge
        self._hedge_target = inner if hedge.to is None else hedge.to
        self._repeats = repeats(inner, hedge.idempotent)

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The object that gets each request first."""
        return (self.inner,)

    async def start(self) -> None:
        """Start the replica that gets the extra requests."""
        await start_owned(self, self.hedge.to)

    async def stop(self, *, drain: bool = True) -> None:
        """Wait for requests that are still being cancelled, and stop the replica."""
        try:
            await until_limit(self.hedge.settle())
        finally:
            await stop_all(self, [self.hedge.to], drain=drain)


class _HedgedService(_Hedged):
    def __init__(self, hedge: Hedge, inner: Any) -> None:
        super().__init__(hedge, inner)
        offered = adapt(self._hedge_target).capabilities()
        self._admission = offered.admission
        self._enforces = offered.enforces_deadline

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner service; deadlines are enforced only if both services do so."""
        offered = super().capabilities()
        return offered._replace(enforces_deadline=offered.enforces_deadline and self._enforces)

    async def call(self, request: Request) -> Response:
        """Return the first response to the request, or raise the first error when all fail."""
        send_again = admits = None
        if may_repeat(request, self._repeats):
            extra = self.inner.call if self.hedge.to is None else self._call_replica
            send_again = functools.partial(extra, request)
            if self._admission is not None:
                admits = functools.partial(self._admission, request)
        send = functools.partial(self.inner.call, request)
        response: Response = await self.hedge._run(send, send_again, request.deadline_ns, admits)
        return response

    async def _call_replica(self, request: Request) -> Response:
        """Return the response of the replica; its source names the route, as a router's responses do."""
        response: Response = await self.hedge.to.call(request)
        source = nested_source(_REPLICA, response.source)
        return Response(response.outputs, response.degraded, source, response.timings)


class _HedgedBackend(_Hedged):
    def __init__(self, hedge: Hedge, inner: Any) -> None:
        super().__init__(hedge, inner)
        self._infer, self._infer_again = _copying(inner), _copying(self._hedge_target)

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner backend; outputs are new arrays."""
        return super().capabilities()._replace(returns_new_arrays=True)

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return the first response to the batch, or raise the first error when all fail."""
        send_again = (lambda: self._infer_again(batch.again())) if may_repeat(batch, self._repeats) else None
        send = functools.partial(self._infer, batch)
        results: Sequence[Any] = await self.hedge._run(send, send_again, batch.deadline_ns)
        return results


def _copying(backend: Any) -> Callable[[Batch], Awaitable[Any]]:
    """Return an ``infer`` that copies outputs of reused memory at once: their delivery takes a turn of the loop."""
    infer: Callable[[Batch], Awaitable[Any]] = backend.infer
    if adapt(backend).capabilities().returns_new_arrays:
        return infer

    async def infer_copied(batch: Batch) -> Any:
        return own_arrays(await infer(batch))

    return infer_copied


def _kind_of(argument: str, value: Any) -> str:
    kind = kind_of(value, argument)
    if kind == "function":
        raise TypeError(expected(argument, "a service, a backend or an async function", value))
    return kind


def _hedge_function(hedge: Hedge, function: Callable[..., Any]) -> Callable[..., Any]:
    repeatable = repeats(function, hedge.idempotent) is not False
    hedge_target = function if hedge.to is None else hedge.to

    @functools.wraps(function)
    async def hedged(*args: Any, **kwargs: Any) -> Any:
        send_again = functools.partial(hedge_target, *args, **kwargs) if repeatable else None
        return await hedge._run(functools.partial(function, *args, **kwargs), send_again)

    return hedged
