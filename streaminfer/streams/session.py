"""`StreamSession`: sends live sources through one service and returns fresh results in order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
import weakref
from collections.abc import AsyncIterable, Awaitable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_clock, check_count, check_instance, check_number, expected
from streaminfer._runtime.closing import AsyncClosing
from streaminfer._runtime.lifecycle import stop_together
from streaminfer.blocking import BlockingStack
from streaminfer.errors import Closed
from streaminfer.protocols import Clock, is_service
from streaminfer.request import check_priority
from streaminfer.stack import Stack
from streaminfer.streams._live_stream_cy import Stream
from streaminfer.streams._outlet_cy import Outlet
from streaminfer.streams._sender_cy import Sender
from streaminfer.streams.policies import MAX_FRAMES, Block, FramePolicy, check_policy
from streaminfer.streams.stream_settings import StreamSettings
from streaminfer.streams.totals import SessionTotals

if TYPE_CHECKING:
    from streaminfer.streams._stream_cy import StreamResult
    from streaminfer.streams.statistics import StreamSessionStatistics, StreamStatistics

__all__ = ["Source", "StreamResults", "StreamSession", "check_source"]

Source = AsyncIterable[Any] | Iterable[Any]
"""What a stream reads: yields `Frame` objects or bare inputs."""

_numbers = itertools.count(1)
"""Numbers of streams without an id; unique in the process, because a model may serve several sessions."""


def check_source(source: object) -> None:
    """Check that a stream can read a source.

    Raises:
        TypeError: ``source`` is not an iterable, or it is a string or bytes, such as an address.
    """
    check_instance(
        "source",
        source,
        lambda it: isinstance(it, (AsyncIterable, Iterable)) and not isinstance(it, (str, bytes)),
        "an asynchronous or plain iterable of frames, such as VideoSource(address)",
    )


class StreamSession(AsyncClosing):
    """Session that sends live streams through one service.

    ::

        session = StreamSession(service, policy=LatestOnly(), max_age_s=0.2)
        async for result in session(camera):
            show(result.outputs, result.age_s)

    The session delivers the results of each stream in order and bounds the number of its frames in flight. The policy
    decides about frames that arrive while the stream is busy. Call the session to read one source; any number of calls
    can run at the same time. For one consumer of many sources, :meth:`add` them and iterate over the session itself.

    If a frame fails, its result has an ``error``, and the stream continues. The stream ends when its source ends or the
    consumer closes it. If the service stops, the stream ends after a result with the error `Closed`.

    Streams take turns by weight, so a stream with a backlog does not delay the others.

    Args:
        service: receives the requests: a `Stack`, a router or replicas. The session does not start or stop it.
        stream_id: id for a call that gives none, so for one open stream at a time; ``None``: each such stream gets a
            new id.
        policy: chooses the frames to send; ``None``: `Block`, which holds the source instead of dropping frames.
        max_in_flight: maximum number of a stream's frames that are sent and not yet taken by the consumer. More than
            one lets a single fast stream keep the service busy; a recurrent model still computes the frames of a
            stream one by one.
        max_age_s: age limit of a result, in seconds from capture. It sets the deadline of the request, and a frame that
            cannot meet this deadline is dropped. ``None``: the service applies the deadline of its objective, if it
            has one; ``math.inf``: no deadline.
        resets_after_gap: reset a recurrent model to its initial state after a frame that was dropped or failed, but not
            after frames that the policy skipped. By default the model continues from its last state, which suits
            sound: a lost chunk is only a click.
        priority: priority of the requests; a lower number is more urgent.
        tenant: tenant of the requests.
        clock: returns monotonic nanoseconds; ``None``: the clock of the `Stack`, else the monotonic clock.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    def __init__(
        self,
        service: Any,
        *,
        stream_id: Hashable = None,
        policy: FramePolicy | None = None,
        max_in_flight: int = 1,
        max_age_s: float | None = None,
        resets_after_gap: bool = False,
        priority: int = 0,
        tenant: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if isinstance(service, BlockingStack):
            raise TypeError("service: expected a Stack or another service; for a BlockingStack: BlockingStreamSession")
        check_instance("service", service, is_service, "a service (an object with call)")
        check_instance("resets_after_gap", resets_after_gap, bool, "True or False")
        check_instance("tenant", tenant, str | None, "a string or None")
        clock = check_clock("clock", clock)
        _check_stream_id(stream_id)
        check_priority(priority)
        self._stream_id = stream_id
        age_ns = 0
        if max_age_s is not None:
            age_s = check_number("max_age_s", max_age_s, "a number of seconds > 0, or None", lambda it: it > 0)
            age_ns = 0 if age_s == math.inf else max(1, round(min(age_s, 1e9) * 1e9))
        self._settings = StreamSettings(
            policy=check_policy("policy", Block() if policy is None else policy),
            max_in_flight=check_count("max_in_flight", max_in_flight, at_most=MAX_FRAMES),
            max_age_ns=age_ns,
            deadline_ns=NEVER_NS if max_age_s == math.inf else None,
            resets_after_gap=resets_after_gap,
            priority=priority,
            tenant=tenant,
        )
        self._given_clock = clock
        self._service = service
        self._totals = SessionTotals()
        self._sender: Sender | None = None
        self._outlet: Outlet | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # -- one source ---------------------------------------------------------------------------------------------

    def __call__(self, source: Source, *, stream_id: Hashable = None, weight: float = 1.0) -> StreamResults:
        """Read a source and return an asynchronous iterator over its results.

        ``async with`` closes the iterator at the end of its block. If a loop is left early, the iterator is closed a
        little later, when it is no longer referenced.

        Args:
            source: an asynchronous iterable of `Frame` objects or bare inputs; a bare input counts as captured when it
                arrives. For a policy that ``waits``, also a plain iterable that does not block, such as a list. The
                session closes an iterator that has ``aclose()``.
            stream_id: id of the stream; ``None``: the id of the session, or a new one if the session has none.
            weight: share of the turns, relative to the weights of other streams, from 0.001 to 1000.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range, or a stream of this id is open.
            Closed: the session was closed.
            RuntimeError: the session has open streams on another event loop.
        """
        sender = self._prepare(source, weight)
        outlet = Outlet(sender.clock, sender.wake_ups)
        chosen_id = self._stream_id if stream_id is None else stream_id
        return StreamResults(self._open(source, chosen_id, weight, sender, outlet), outlet)

    # -- many sources -------------------------------------------------------------------------------------------

    def add(self, source: Source, *, stream_id: Hashable = None, weight: float = 1.0) -> Hashable:
        """Read a source; iterating over the session returns its results among those of the other sources.

        Args:
            source: as for a call.
            stream_id: id of the stream; ``None``: a new one.
            weight: as for a call.

        Returns:
            The id of the stream, which its results carry.

        Raises:
            TypeError, ValueError, Closed, RuntimeError: as for a call.
        """
        sender = self._prepare(source, weight)
        if self._outlet is None:
            self._outlet = Outlet(sender.clock, sender.wake_ups)
            weakref.finalize(self, _abandon, self._loop, self._outlet).atexit = False
        return self._open(source, stream_id, weight, sender, self._outlet).stream_id

    async def remove(self, stream_id: Hashable) -> None:
        """Close a stream and drop its frames that wait or are in flight; ignore an id without an open stream.

        Args:
            stream_id: id of the stream.
        """
        _check_stream_id(stream_id)
        self._forget_lost()
        stream = self._totals.open.get(stream_id)
        if stream is not None:
            await stream.close(asyncio.current_task())

    def __aiter__(self) -> Self:
        self._forget_lost()
        return self

    def __anext__(self) -> Awaitable[StreamResult]:
        """Return the next result of the added streams; the iteration ends when the last of them has ended.

        If a source raises, the last result of its stream has this ``error`` and is marked ``source_failed``.

        Raises:
            RuntimeError: no stream was added.
        """
        if self._outlet is None:
            raise RuntimeError("this session has no results of its own: add() a source first, or call the session")
        return self._outlet.get(self, False)

    # -- life ---------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close every stream, accept no further ones, and wait until no task of the session is left.

        A source may call this method too, even while it ends; then only the task of that source is left.
        """
        self._closed = True
        self._forget_lost()
        closer = asyncio.current_task()
        await stop_together(stream.close(closer) for stream in list(self._totals.open.values()))

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """Ids of the open streams."""
        return tuple(self._totals.open)

    @property
    def children(self) -> Mapping[str, Any]:
        """The service that receives the requests, for exporters and the live page."""
        return {"inner": self._service}

    def statistics(self) -> StreamSessionStatistics:
        """Return a snapshot of all streams."""
        self._forget_lost()
        return self._totals.snapshot()

    def __repr__(self) -> str:
        return f"<StreamSession, {len(self._totals.open)} streams open: {self._service!r}>"

    # -- inside -------------------------------------------------------------------------------------------------

    def _prepare(self, source: Source, weight: float) -> Sender:
        if self._closed:
            raise Closed("this session was closed")
        check_source(source)
        if not isinstance(source, AsyncIterable) and not self._settings.waits:
            raise TypeError(expected("source", "an asynchronous iterable, since the policy drops frames", source))
        check_number("weight", weight, "a number from 0.001 to 1000", lambda it: 0.001 <= it <= 1000)
        loop = asyncio.get_running_loop()
        self._forget_lost()
        if loop is not self._loop:
            if self._totals.open:
                raise RuntimeError("this session has open streams on another event loop")
            self._loop, self._sender, self._outlet = loop, None, None
        if self._sender is None:
            clock = self._given_clock
            if clock is None:
                clock = self._service.clock if isinstance(self._service, Stack) else time.monotonic_ns
            self._sender = Sender(self._service, clock, self._settings)
        return self._sender

    def _forget_lost(self) -> None:
        """Count the streams that a closed event loop left behind as closed."""
        if self._loop is not None and self._loop.is_closed():
            for stream in list(self._totals.open.values()):
                stream.forget()
            self._loop, self._sender, self._outlet = None, None, None

    def _open(self, source: Source, stream_id: Hashable, weight: float, sender: Sender, outlet: Outlet) -> Stream:
        _check_stream_id(stream_id)
        if stream_id is None:
            stream_id = f"stream-{next(_numbers)}"
        if stream_id in self._totals.open:
            raise ValueError(expected("stream_id", "an id of which no stream is open", stream_id))
        sender.join()  # before the stream starts its task: this may fail
        stream = Stream(stream_id, source, self._settings, weight, sender, outlet, self._totals)
        self._totals.open[stream_id] = stream
        return stream


class StreamResults(AsyncClosing):
    """Asynchronous iterator over the results of one stream, in order; returned by calling a `StreamSession`.

    If the source raises, the iterator raises the same error after the results of earlier frames.

    Attributes:
        stream_id: id of the stream.
    """

    def __init__(self, stream: Stream, outlet: Outlet) -> None:
        self.stream_id = stream.stream_id
        self._stream = stream
        self._outlet = outlet
        # only the consumer refers to this object, so a consumer that leaves its loop closes the stream
        weakref.finalize(self, _abandon, asyncio.get_running_loop(), outlet).atexit = False

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[StreamResult]:
        """Return the next result.

        Raises:
            StopAsyncIteration: the stream has ended.
            Exception: the error that the source raised.
        """
        return self._outlet.get(self, True)

    async def aclose(self) -> None:
        """Close the stream and its source, and drop the frames that wait or are in flight."""
        await self._stream.close(asyncio.current_task())

    def statistics(self) -> StreamStatistics:
        """Return a snapshot of the stream."""
        return self._stream.statistics()

    def __repr__(self) -> str:
        return f"<StreamResults of {self.stream_id!r}>"


def _check_stream_id(stream_id: object) -> None:
    try:
        hash(stream_id)  # a tuple is hashable only if its elements are
    except TypeError:
        raise TypeError(expected("stream_id", "a hashable value or None", stream_id)) from None


def _abandon(loop: asyncio.AbstractEventLoop | None, outlet: Outlet) -> None:
    """Close the streams of an outlet without a reader; the garbage collector calls this, in any thread."""
    if loop is None or loop.is_closed() or not outlet.streams:
        return
    with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago
        loop.call_soon_threadsafe(outlet.abandon)
