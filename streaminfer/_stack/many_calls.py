"""Many requests of one caller: all of them complete, even if the queue is small."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

from streaminfer._runtime.closing import close_answers
from streaminfer._runtime.lifecycle import end_tasks
from streaminfer._runtime.rows import cut_rows, join_rows
from streaminfer.errors import Closed, DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Capabilities
from streaminfer.request import MapSettings, Request, deadline_after, time_left_s

if TYPE_CHECKING:
    from streaminfer._stack._chain_cy import Chain, Passage
    from streaminfer._stack.served_stack import ServedStack
    from streaminfer.request import Response

__all__ = ["PlaceQueue", "answer_all", "answer_rows", "check_settings", "default_concurrency"]

_NO_PLACE = "the deadline passed while the request waited for a place in the queue"
_STOPPED = "the stack stopped while the request waited for a place in the queue"
_SHORTEST_PAUSE_S = 0.001  # if a rejection does not say when to retry
_LONGEST_PAUSE_S = 0.05  # room may come earlier than expected: callers leave, and batches fail
_DEFAULT_CONCURRENCY = 64
_PASSING = {AdmissionReason.QUEUE_FULL, AdmissionReason.LIMIT, AdmissionReason.RATE_LIMIT}
"""Reasons that no longer apply once other requests complete."""


class _Line:
    """Waiting requests of one tenant, stream and priority; the first one looks for a place, the others follow it.

    Attributes:
        turn: held by the first request.
        first: the request that looks for a place; ``None``: the next one has not begun to.
        waiting: number of requests, with the first.
        look: set if the first request should look for a place now.
        is_above_rate: a rate limit rejected the first request when it last looked, so others need not ask for it.
    """

    __slots__ = ("first", "is_above_rate", "look", "turn", "waiting")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.first: Request | None = None
        self.waiting = 0
        self.look = asyncio.Event()
        self.is_above_rate = False


class PlaceQueue:
    """Callers that wait for room in the queue of a stack; for one event loop.

    A request may be rejected while another would be admitted: by the rate limit of its tenant, the fair share of its
    stream, or because only urgent requests have room. So requests of one tenant, stream and priority wait in order of
    arrival, in a line of their own, and the first one of each line asks for its own admission. A request that has a
    place leaves it to more urgent ones, and to those that came before it, if they have a place too. After a line has
    sent a request, it is behind the others.

    Args:
        stack: the stack.
    """

    def __init__(self, stack: ServedStack) -> None:
        self._stack = stack
        self._lines: dict[tuple[str | None, Hashable, int], _Line] = {}  # in the order in which they may send
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End all waiting, because the stack stops."""
        self._closed.set()
        for line in self._lines.values():
            line.look.set()

    async def call(self, request: Request, pause_s: float = 0.0) -> Response:
        """Send a request when the queue has room, and return its response.

        Args:
            request: the request.
            pause_s: seconds to wait before sending, if the request was rejected before.

        Raises:
            DeadlineExceeded: the queue had no room before the deadline.
            StreamInferError: as in :meth:`Stack.call`, except ``Overloaded``; ``Closed`` as soon as the stack stops.
        """
        while True:
            left_s = time_left_s(request.deadline_ns, self._stack.clock())
            if pause_s:
                await self._pause(pause_s if left_s is None else min(pause_s, max(left_s, 0.0)), self._closed)
                left_s = time_left_s(request.deadline_ns, self._stack.clock())
            is_late = left_s is not None and left_s <= 0
            if not is_late and not self.is_free_for(request):
                try:
                    async with asyncio.timeout(left_s):
                        await self._wait_for_place(request)
                except TimeoutError:
                    is_late = True
            if is_late:  # outside the handler, because the error would keep the other one and its frames
                raise DeadlineExceeded(_NO_PLACE)
            try:
                return await self._stack.call(request)  # takes the room before another task runs
            except Overloaded as error:  # of a layer whose `admission` did not show it
                pause_s = _pause_after(error, pause_s)

    def is_free_for(self, request: Request) -> bool:
        """Return whether a request may be sent now: it has a place, and does not take that of one that waits."""
        if self._lines and _line_of(request) in self._lines:
            return False
        return not self._left_s(request)

    def _left_s(self, request: Request, own: _Line | None = None) -> float:
        """Return the seconds until a request should look for a place again; 0: it may be sent now.

        Args:
            request: the request.
            own: its line, if it is the first one there.
        """
        place = self._place(request)
        if own is not None:
            own.is_above_rate = place.reason == AdmissionReason.RATE_LIMIT
        # the next line looks often; the more other lines, the less often each, because they wake the next one for room
        pause_s = _SHORTEST_PAUSE_S * (1 if own is None or own is self._next_line() else len(self._lines))
        if place.reason in _PASSING:
            # the queue does not announce free room, so this checks at its estimate or earlier
            return max(pause_s, min(place.retry_after_s or 0.0, _LONGEST_PAUSE_S))
        comes_before = True
        for line in self._lines.values():
            other = line.first
            if line is own:
                comes_before = False
            elif other is None or line.is_above_rate or other.priority > request.priority:
                continue
            elif (comes_before or other.priority < request.priority) and self._has_place(other):
                line.look.set()
                return pause_s
        return 0.0

    async def _wait_for_place(self, request: Request) -> None:
        key = _line_of(request)
        line = self._lines.setdefault(key, _Line())
        line.waiting += 1
        try:
            async with line.turn:
                line.first = request
                try:
                    while left_s := self._left_s(request, line):
                        await self._pause(left_s, line.look)
                        line.look.clear()
                    self._check_open()
                finally:
                    line.first = None
                    self._lines[key] = self._lines.pop(key)
            if (next_line := self._next_line()) is not None:
                next_line.look.set()  # there may be room for more
        finally:
            line.waiting -= 1
            if not line.waiting:
                del self._lines[key]

    def _next_line(self) -> _Line | None:
        """Return the first line that waits for a place, and not for its rate limit."""
        return next((line for line in self._lines.values() if line.first is not None and not line.is_above_rate), None)

    def _check_open(self) -> None:
        """Raise `Closed` for callers from an earlier run of a restarted stack, because they would wait for ever."""
        if self._closed.is_set():
            raise Closed(_STOPPED)

    def _has_place(self, other: Request) -> bool:
        try:
            return self._place(other).reason not in _PASSING
        except Exception:  # noqa: BLE001 - of a check of one's own: it is raised when the request itself looks
            return True

    def _place(self, request: Request) -> Admission:
        return self._stack.admission(request, self._stack.clock())

    async def _pause(self, seconds: float, look: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await look.wait()
        self._check_open()


def _line_of(request: Request) -> tuple[str | None, Hashable, int]:
    return request.tenant, request.stream_id, request.priority


def _pause_after(error: Overloaded, before_s: float = 0.0) -> float:
    """Return the pause, in seconds > 0, before a rejected request is sent again.

    Args:
        error: the rejection; if it does not say when to retry, each pause is twice the previous one.
        before_s: the previous pause.
    """
    return max(error.retry_after_s or min(2.0 * before_s, _LONGEST_PAUSE_S), _SHORTEST_PAUSE_S)


def default_concurrency(offered: Capabilities) -> int:
    """Return how many requests keep all workers of all replicas busy with full batches, at least 64."""
    load = offered.full_load or offered.spread_load
    return _DEFAULT_CONCURRENCY if load is None else max(_DEFAULT_CONCURRENCY, load())


def check_settings(method: str, settings: MapSettings) -> Request:
    """Check the keywords of a call that sends many requests, before it sends the first.

    Args:
        method: name of the method.
        settings: keywords of the call.

    Returns:
        A request with these settings, without a deadline.

    Raises:
        InvalidInput: a value is wrong.
        TypeError: there is no such keyword.
    """
    for name in settings:
        if name not in MapSettings.__optional_keys__:
            names = ", ".join(sorted(MapSettings.__optional_keys__))
            raise TypeError(
                f"{method}() got an unexpected keyword argument {name!r}; those of its requests are {names}"
            )
    fields: dict[str, Any] = {**settings}
    timeout_s = fields.pop("timeout_s", None)
    if timeout_s is not None:
        deadline_after(0, timeout_s)
    return Request(None, **fields)


async def answer_all(
    inputs: Iterable[Any], send: Callable[[Any], Awaitable[Any]], concurrency: int, return_exceptions: bool
) -> list[Any]:
    """Send a request for each of the inputs, at most ``concurrency`` at a time.

    Args:
        inputs: read one by one as requests are sent.
        send: sends the request for one input and returns its response.
        concurrency: most requests at the same time.
        return_exceptions: put errors into the result; otherwise the first error cancels the rest and is raised.

    Returns:
        The responses in the order of the inputs.
    """
    answers: dict[int, Any] = {}
    numbered: Iterator[tuple[int, Any]] = enumerate(inputs)

    async def work(numbered_inputs: Iterable[tuple[int, Any]]) -> None:
        for number, item in numbered_inputs:
            try:
                answers[number] = await send(item)
            except Exception as error:
                if not return_exceptions:
                    raise
                answers[number] = error

    workers: list[asyncio.Task[None]] = []
    try:
        first_inputs = itertools.islice(numbered, concurrency)  # no more workers than there are inputs
        workers.extend(asyncio.create_task(work(itertools.chain([first], numbered))) for first in first_inputs)
        await asyncio.gather(*workers)
    except BaseException:
        await end_tasks(workers)
        workers.clear()  # breaks a cycle: a task holds the error, whose traceback holds this frame
        for answer in answers.values():
            await close_answers(answer)
        raise
    return [answers[number] for number in range(len(answers))]


async def answer_rows(
    chain: Chain, places: PlaceQueue, offered: Capabilities, inputs: Any, **settings: Unpack[MapSettings]
) -> Any:
    """Send a request for each row of the inputs, all with one deadline.

    Args:
        chain: chain of the stack.
        places: queue of waiting callers of the stack.
        offered: capabilities of its layers.
        inputs: an array with the rows on its first axis, or a mapping of such arrays.
        **settings: of the request.

    Returns:
        The joined outputs, with the same number of rows.
    """
    fields: dict[str, Any] = {**settings, "tags": check_settings("rows", settings).tags}  # they may be an iterator
    rows = cut_rows(inputs)
    deadline_ns = chain.deadline_ns(None, fields.pop("timeout_s", None), chain.clock())
    requests = [Request(row, deadline_ns=deadline_ns, **fields) for row in rows]
    return join_rows(await _RowCalls(chain, places, requests).answers(default_concurrency(offered)))


class _RowCalls:
    """Requests of one caller that needs all responses: futures of the batcher, without a task for each.

    Args:
        chain: chain of the stack.
        places: queue of waiting callers of the stack.
        requests: one for each row.
    """

    def __init__(self, chain: Chain, places: PlaceQueue, requests: list[Request]) -> None:
        self._chain = chain
        self._places = places
        self._requests = requests
        self._sent = 0
        self._running: dict[asyncio.Future[Any], None] = {}  # ordered, so that runs in virtual time are repeatable
        self._outputs: dict[int, Any] = {}
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answers(self, concurrency: int) -> list[Any]:
        """Send at most ``concurrency`` requests at a time, and return all outputs; the first error cancels the rest."""
        try:
            for _ in self._requests[:concurrency]:
                self._send()
            await self._end
        except BaseException:
            self._end = asyncio.get_running_loop().create_future()  # replaces the future that holds the error
            self._end.cancel()
            await end_tasks(self._running)
            for outputs in self._outputs.values():
                await close_answers(outputs)
            raise
        return [self._outputs[number] for number in range(len(self._requests))]

    def _send(self) -> None:
        number = self._sent
        self._sent += 1
        request = self._requests[number]
        if self._chain.batcher is None or not self._places.is_free_for(request):
            self._send_later(number)
            return
        try:
            passage = self._chain.open_request(request, None)
        except Overloaded as error:  # of a layer whose `admission` did not show it
            self._send_later(number, _pause_after(error))
            return
        self._follow(asyncio.ensure_future(passage.awaited), number, passage)

    def _send_later(self, number: int, pause_s: float = 0.0) -> None:
        self._follow(asyncio.ensure_future(self._places.call(self._requests[number], pause_s)), number, None)

    def _follow(self, future: asyncio.Future[Any], number: int, passage: Passage | None) -> None:
        self._running[future] = None
        future.add_done_callback(functools.partial(self._completed, number, passage))

    def _completed(self, number: int, passage: Passage | None, future: asyncio.Future[Any]) -> None:
        self._running.pop(future, None)
        try:
            if not self._take(number, passage, future) or self._end.done():
                return
            if self._sent < len(self._requests):
                self._send()
            elif len(self._outputs) == len(self._requests):
                self._end.set_result(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where all of them are awaited
            if not self._end.done():
                self._end.set_exception(error)
        finally:
            del future, passage  # the error's traceback holds this frame, and they hold it and the inputs

    def _take(self, number: int, passage: Passage | None, future: asyncio.Future[Any]) -> bool:
        """Store the outcome of a row; return false if the row was sent again."""
        try:
            outcome = future.result()
        except BaseException as error:
            response = None if passage is None else self._chain.failed(passage, error)
            if response is not None:
                self._outputs[number] = response.outputs
            elif isinstance(error, Overloaded) and passage is not None and not self._end.done():
                self._send_later(number, _pause_after(error))  # shed for a more urgent request, or the model is full
                return False
            else:
                raise
        else:
            self._outputs[number] = outcome.outputs if passage is None else self._chain.outputs(passage, outcome)
        finally:
            del future, passage  # as in `_completed`
        return True
