"""`Hedge`: a second request when the first takes longer than most, so that a slow answer now and then is no slow tail.

*Idea* (Dean and Barroso, The Tail at Scale, 2013): wait until the first request has taken longer than 95 % do lately,
then ask again, elsewhere or once more; the first answer wins and the other request is cancelled. The load grows by
about 5 %, and the slow one in a hundred becomes the slow one in thousands.

*The delay* is a live quantile of what first requests take, over the last minute. A first request that lost is counted
with the time that it had when it was cancelled: left out, the slow ones would be missing and the delay would shrink
until everything was hedged. With fewer than ``1 / (1 - quantile)`` durations there is no such quantile, and no hedge.

*The cap.* When everything is slow, every request is slower than the quantile of a minute ago, and hedging all of them
would double the load just then. So extra requests are granted as a share of traffic (``_call_budget_cy``), and what
stands behind is asked (``admission``) before it gets one.

*The race.* Requests that may be hedged run in tasks of their own. The first answer ends it. A failure does not while
another is under way; one that comes before any hedge is raised at once: repeating failures is `RetryBudget`'s. A
loser is cancelled; one that ends at once, as all that only awaits does, has ended when the caller gets its answer. One
that cannot be cancelled at once is not waited for, since its slowness is what the hedge was for: it is kept, its
exception is taken, and ``stop`` waits for it.

Cost: a task and a timer for each request that may be hedged.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number, expected
from streaminfer._runtime.owners import start_owned
from streaminfer._runtime.stopping import stop_all
from streaminfer.protocols import Admission, Backend, Clock, P, R, Service, Wrapper, adapt
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience._call_budget_cy import CallBudget
from streaminfer.resilience._targets import kind_of, may_repeat, refuse_copy, repeats
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram

if TYPE_CHECKING:
    from streaminfer.resilience.hedge.statistics import HedgeStatistics

__all__ = ["Hedge"]

_Share: type[CallBudget] = thread_safe(CallBudget, ("grant", "count", "left"))
_MOST = 8
_REFRESH_NS = 50_000_000
_DIGITS = 2
_LONGER = 1.0 + 10.0**-_DIGITS  # than the quantile: the histogram tells durations apart to that


class Hedge:
    """Asks a second time when the first answer is late, and takes the one that comes first.

    It stands in front of a service, a backend or an async function, with :meth:`wrap` or as a decorator. What shares
    the object shares delay and cap. A request is never sent twice when it belongs to a live stream or when what stands
    behind is declared ``idempotent = False``, nor when the second could not be on time.

    Args:
        quantile: a first request that takes longer than this quantile of the last minute's is hedged, above 0, below 1.
        min_delay_s: it is never hedged sooner than this.
        max_extra: extra requests per request over the last ten seconds, above 0 and at most 1.
        max_hedges: extra requests for one request at most, ≥ 1, each after the same delay again.
        to: who gets the extra requests: the same kind of thing as what is wrapped, a replica. ``None``: the same again.
            A wrapped service or backend starts and stops it with itself.
        idempotent: whether requests may be sent twice. ``None``: what ``idempotent`` of the service behind says, else
            all but those that belong to a live stream. True: those too. False: none.
        name: for reports.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: belongs to one event loop at a time.
    """

    def __init__(
        self,
        *,
        quantile: float = 0.95,
        min_delay_s: float = 0.001,
        max_extra: float = 0.05,
        max_hedges: int = 1,
        to: Any = None,
        idempotent: bool | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.quantile = check_number("quantile", quantile, "a share above 0 and below 1", lambda it: 0.0 < it < 1.0)
        extra = check_number("max_extra", max_extra, "a share above 0 and at most 1", lambda it: 0.0 < it <= 1.0)
        self._min_delay_s = check_duration("min_delay_s", min_delay_s)
        self.max_hedges = check_count("max_hedges", max_hedges, at_most=_MOST)
        check_instance("idempotent", idempotent, lambda it: it is None or isinstance(it, bool), "True, False or None")
        check_instance("name", name, lambda it: isinstance(it, str), "a string")
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        self._to_kind = None if to is None else kind_of(to)
        self.to: Any = to
        self.idempotent = idempotent
        self.name = name
        self._share = _Share(extra, 0.0)
        self._took = RollingHistogram(clock=clock, significant_digits=_DIGITS)
        self._least_count = math.ceil(round(1.0 / (1.0 - self.quantile), 6))
        self._clock: Clock = clock or time.monotonic_ns
        self._clock_given = clock is not None
        self._delay_s: float | None = None
        self._usual_ns = 0.0
        self._measure_ns = 0
        self._won = 0
        self._not_admitted = 0
        self._no_time = 0
        self._losers: set[asyncio.Task[Any]] = set()

    @overload
    def wrap(self, inner: Service | Backend) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Puts it in front of a service, a backend or an async function; also what ``@hedge`` does.

        Args:
            inner: a service, a backend, whose whole batch is sent twice, or an async function.

        Returns:
            The same kind of thing.

        Raises:
            TypeError: none of these, or another kind than ``to``.
        """
        kind = kind_of(inner)
        if kind == "function":
            raise TypeError(expected("inner", "a service, a backend or an async function", inner))
        if self._to_kind is not None and self._to_kind != kind:
            raise TypeError(expected("inner", f"a {self._to_kind}, as `to` is", inner))
        if kind == "service":
            return _HedgedService(self, inner)
        return _HedgedBackend(self, inner) if kind == "backend" else _hedge_function(self, inner)

    __call__ = wrap

    @property
    def delay_s(self) -> float | None:
        """Seconds after which a request is hedged; ``None``: too little is known yet."""
        self._measure(self._clock())
        return self._delay_s

    @property
    def children(self) -> Mapping[str, Any]:
        """The replica that gets the extra requests."""
        return {} if self.to is None else {"hedge": self.to}

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given."""
        if not self._clock_given:
            self._clock = clock
            self._clock_given = True
            self._took.bind_clock(clock)
            self._measure_ns = 0
            adapt(self.to).bind_clock(clock)

    def statistics(self) -> HedgeStatistics:
        """A frozen snapshot."""
        from streaminfer.resilience.hedge.statistics import HedgeStatistics  # noqa: PLC0415 - who asks for a snapshot loads what it is made of

        return HedgeStatistics(
            name=self.name,
            requests=self._share.requests,
            hedges=self._share.granted,
            won=self._won,
            over_cap=self._share.refused,
            not_admitted=self._not_admitted,
            no_time=self._no_time,
            losers=len(self._losers),
            delay_s=self.delay_s,
        )

    async def settle(self) -> None:
        """Waits until every loser has ended."""
        while self._losers:
            await asyncio.wait(self._losers)

    __reduce__ = refuse_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<Hedge({name}{self._share.granted} extra of {self._share.requests} requests)>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()

    # -- the race -----------------------------------------------------------------------------------------------

    def _measure(self, now_ns: int) -> None:
        """Reads delay and usual duration off the histogram, now and then."""
        if now_ns < self._measure_ns:
            return
        if self._took.count < self._least_count:
            self._delay_s = None
            return  # looked at again at the next request: few are cheap to count
        self._measure_ns = now_ns + _REFRESH_NS
        usual_s, delay_s = self._took.quantiles([0.5, self.quantile])
        self._usual_ns = float(usual_s) * 1e9
        self._delay_s = max(float(delay_s) * _LONGER, self._min_delay_s)

    async def _run(
        self,
        ask: Callable[[], Coroutine[Any, Any, Any]],
        ask_again: Callable[[], Coroutine[Any, Any, Any]] | None,
        deadline_ns: int | None = None,
        admits: Callable[[int], Admission] | None = None,
    ) -> Any:
        """The first answer of one request and, if that takes long, of others.

        Args:
            ask: sends the request.
            ask_again: sends it once more; ``None``: it may not be sent twice.
            deadline_ns: of the request.
            admits: asks whoever would get the extra request.
        """
        now_ns = self._clock()
        self._share.count(now_ns)
        self._measure(now_ns)
        delay_s = self._delay_s
        if delay_s is None or ask_again is None:
            answer = await ask()
            self._took.record_ns(max(self._clock() - now_ns, 0))
            return answer
        race = _Race(self, ask_again, deadline_ns, admits, delay_s)
        first = race.send(ask)
        try:
            await race.over
        finally:
            losers = race.end()
            if losers:
                await self._cancel(losers)
        winner = race.winner
        if winner is None:
            return race.failed[0].result()  # raises what ended the earliest
        if first not in race.failed:
            self._took.record_ns(max(self._clock() - now_ns, 0))
        self._won += winner is not first
        return winner.result()

    def _grants(self, deadline_ns: int | None, admits: Callable[[int], Admission] | None) -> bool:
        """Whether an extra request may be made now."""
        now_ns = self._clock()
        if deadline_ns is not None and now_ns + self._usual_ns >= deadline_ns:
            self._no_time += 1
            return False
        if admits is not None and not admits(now_ns).ok:
            self._not_admitted += 1
            return False
        return bool(self._share.grant(now_ns))

    async def _cancel(self, losers: set[asyncio.Task[Any]]) -> None:
        for task in losers:
            self._losers.add(task)
            task.add_done_callback(self._losers.discard)
            task.cancel()
        await asyncio.wait(losers, timeout=0)  # those that end at once do


class _Race:
    """One request, and the extra ones that are sent while it is not answered.

    Attributes:
        over: done when there is an answer, or when all have failed.
        winner: whose answer it is.
        failed: those that failed before, in order.
    """

    __slots__ = ("_admits", "_again", "_deadline_ns", "_delay_s", "_hedge", "_left", "_loop", "_running", "_timer",
                 "failed", "over", "winner")  # fmt: skip

    def __init__(
        self,
        hedge: Hedge,
        again: Callable[[], Coroutine[Any, Any, Any]],
        deadline_ns: int | None,
        admits: Callable[[int], Admission] | None,
        delay_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._hedge = hedge
        self._again = again
        self._deadline_ns = deadline_ns
        self._admits = admits
        self._delay_s = delay_s
        self._left = hedge.max_hedges
        self._loop = loop
        self._running: set[asyncio.Task[Any]] = set()
        self._timer = loop.call_later(delay_s, self._late)
        self.over: asyncio.Future[None] = loop.create_future()
        self.winner: asyncio.Task[Any] | None = None
        self.failed: list[asyncio.Task[Any]] = []

    def send(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Sends a request in a task of its own."""
        task = self._loop.create_task(ask())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def end(self) -> set[asyncio.Task[Any]]:
        """No more extra requests; gives those that still run."""
        self._timer.cancel()
        return self._running

    def _late(self) -> None:
        if self._hedge._grants(self._deadline_ns, self._admits):
            self.send(self._again)
            self._left -= 1
            if self._left:
                self._timer = self._loop.call_later(self._delay_s, self._late)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        failed = task.cancelled() or task.exception() is not None  # asked in any case: then somebody has taken it
        if self.over.done():
            return  # a loser
        if failed:
            self.failed.append(task)
            self._timer.cancel()
            if self._running:
                return
        else:
            self.winner = task
        self.over.set_result(None)


class _Hedged(Wrapper):
    def __init__(self, hedge: Hedge, inner: Any) -> None:
        super().__init__(inner, hedge)
        self.hedge = hedge
        self._again = inner if hedge.to is None else hedge.to
        self._repeats = repeats(inner, hedge.idempotent)

    async def start(self) -> None:
        """Starts the replica that gets the extra requests."""
        await start_owned(self, self.hedge.to)

    async def stop(self, *, drain: bool = True) -> None:
        """Waits for losers that could not be cancelled at once, and stops the replica."""
        await self.hedge.settle()
        await stop_all(self, [self.hedge.to], drain=drain)

    def __repr__(self) -> str:
        return f"{self.hedge!r} in front of {self.inner!r}"


class _HedgedService(_Hedged):
    def __init__(self, hedge: Hedge, inner: Any) -> None:
        super().__init__(hedge, inner)
        self._admission = adapt(self._again).capabilities().admission

    async def call(self, request: Request) -> Response:
        """Answers the request: with the first answer, or the first error when all fail."""
        again = admits = None
        if may_repeat(request, self._repeats):
            again = functools.partial(self._again.call, request)
            if self._admission is not None:
                admits = functools.partial(self._admission, request)
        ask = functools.partial(self.inner.call, request)
        response: Response = await self.hedge._run(ask, again, request.deadline_ns, admits)
        return response


class _HedgedBackend(_Hedged):
    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Answers the batch: with the first answer, or the first error when all fail."""
        again = (lambda: self._again.infer(batch.again())) if may_repeat(batch, self._repeats) else None
        ask = functools.partial(self.inner.infer, batch)
        results: Sequence[Any] = await self.hedge._run(ask, again, batch.deadline_ns)
        return results


def _hedge_function(hedge: Hedge, function: Callable[..., Any]) -> Callable[..., Any]:
    repeatable = repeats(function, hedge.idempotent) is not False
    again = function if hedge.to is None else hedge.to

    @functools.wraps(function)
    async def hedged(*args: Any, **kwargs: Any) -> Any:
        ask_again = functools.partial(again, *args, **kwargs) if repeatable else None
        return await hedge._run(functools.partial(function, *args, **kwargs), ask_again)

    return hedged
