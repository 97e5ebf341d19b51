"""Many requests of one caller: all of them are answered, however small the queue is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

from streaminfer._runtime.rows import cut_rows, join_rows
from streaminfer.errors import DeadlineExceeded, Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock
from streaminfer.request import MapSettings, Request, deadline_after, time_left_s

if TYPE_CHECKING:
    from streaminfer._stack.served_stack import ServedStack
    from streaminfer.request import Response

__all__ = ["PlaceQueue", "answer_all", "answer_rows", "check_settings", "default_concurrency"]

_NO_PLACE = "the deadline passed while the request waited for a place in the queue"
_SHORTEST_PAUSE_S = 0.001  # where a refusal does not say when to ask again
_DEFAULT_CONCURRENCY = 64
_PASSING = {AdmissionReason.QUEUE_FULL, AdmissionReason.LIMIT, AdmissionReason.RATE_LIMIT}
"""Reasons that end by themselves when other requests complete."""


class PlaceQueue:
    """Callers of a stack that wait for a place in its queue, in the order in which they came; of one event loop.

    Args:
        stack: whose places.
    """

    def __init__(self, stack: ServedStack) -> None:
        self._stack = stack
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End the waiting: the stack stops, and has no more places."""
        self._closed.set()

    async def call(self, request: Request) -> Response:
        """Answers a request when there is a place for it.

        Raises:
            DeadlineExceeded: there was none before its deadline.
            StreamInferError: as :meth:`Stack.call`, but not ``Overloaded``; ``Closed`` as soon as the stack stops.
        """
        while True:
            left_s = time_left_s(request.deadline_ns, self._stack.clock())
            if left_s is not None and left_s <= 0:
                raise DeadlineExceeded(_NO_PLACE)
            if self._waiting or self._place(request).reason in _PASSING:
                self._waiting += 1
                try:
                    async with asyncio.timeout(left_s):
                        await self._wait_for_place(request)
                except TimeoutError:
                    raise DeadlineExceeded(_NO_PLACE) from None
                finally:
                    self._waiting -= 1
            try:
                return await self._stack.call(request)  # takes the place before anybody else has a turn
            except Overloaded as error:  # of a layer that does not say so beforehand
                pause_s = max(error.retry_after_s or 0.0, _SHORTEST_PAUSE_S)
            left_s = time_left_s(request.deadline_ns, self._stack.clock())
            if left_s is not None:
                pause_s = min(pause_s, max(left_s, 0.0))
            await self._pause(pause_s)

    async def _wait_for_place(self, request: Request) -> None:
        async with self._turn:
            # the queue does not announce a free place, so it is asked when it expects one
            while (place := self._place(request)).reason in _PASSING:
                await self._pause(max(place.retry_after_s or 0.0, _SHORTEST_PAUSE_S))

    def _place(self, request: Request) -> Admission:
        return self._stack.admission(request, self._stack.clock())

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


def default_concurrency(full_load: Callable[[], int] | None) -> int:
    """Return how many requests keep every worker of a batcher busy with full batches; 64 where there is none."""
    return _DEFAULT_CONCURRENCY if full_load is None else max(_DEFAULT_CONCURRENCY, full_load())


def check_settings(method: str, settings: MapSettings) -> Request:
    """Check the keywords of a call that sends many requests, before it sends the first.

    Args:
        method: its name.
        settings: its keywords.

    Returns:
        A request that has them, without a deadline.

    Raises:
        InvalidInput: a value is wrong.
        TypeError: there is no such keyword.
    """
    for name in settings:
        if name not in MapSettings.__optional_keys__:
            known = ", ".join(sorted(MapSettings.__optional_keys__))
            raise TypeError(
                f"{method}() got an unexpected keyword argument {name!r}; those of its requests are {known}"
            )
    fields: dict[str, Any] = {**settings}
    timeout_s = fields.pop("timeout_s", None)
    if timeout_s is not None:
        deadline_after(0, timeout_s)
    return Request(None, **fields)


async def answer_all(
    inputs: Iterable[Any], ask: Callable[[Any], Awaitable[Any]], concurrency: int, return_exceptions: bool
) -> list[Any]:
    """Ask for each of some inputs, at most ``concurrency`` at a time.

    Args:
        inputs: read as their turn comes.
        ask: answers one of them.
        concurrency: how many are asked for at the same time.
        return_exceptions: put errors among the answers; otherwise the first one ends what is left, and is raised.

    Returns:
        The answers in the order of the inputs.
    """
    answers: dict[int, Any] = {}
    numbered: Iterator[tuple[int, Any]] = enumerate(inputs)

    async def work(some: Iterable[tuple[int, Any]]) -> None:
        for number, one in some:
            try:
                answers[number] = await ask(one)
            except Exception as error:
                if not return_exceptions:
                    raise
                answers[number] = error

    workers: list[asyncio.Task[None]] = []
    try:
        firsts = itertools.islice(numbered, concurrency)  # no more workers than there are inputs
        workers.extend(asyncio.create_task(work(itertools.chain([first], numbered))) for first in firsts)
        await asyncio.gather(*workers)
    except BaseException:
        _cancel(workers)
        await asyncio.gather(*workers, return_exceptions=True)
        workers.clear()  # one has the error, whose traceback holds this frame
        raise
    return [answers[number] for number in range(len(answers))]


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:  # not in the frame above: the error's traceback holds that, and would hold the last task
        task.cancel()


async def answer_rows(
    places: PlaceQueue, clock: Clock, offered: Capabilities, inputs: Any, **settings: Unpack[MapSettings]
) -> Any:
    """Ask for each row of some inputs by one deadline.

    Args:
        places: of the stack that is asked.
        clock: of that stack.
        offered: what its layers offer.
        inputs: an array whose first axis holds the rows, or a mapping of such arrays.
        **settings: of the request.

    Returns:
        The answers as one, with as many rows.
    """
    fields: dict[str, Any] = {**settings, "tags": check_settings("rows", settings).tags}  # they may be an iterator
    rows = cut_rows(inputs)
    timeout_s = fields.pop("timeout_s", None)
    deadline_ns, now_ns = None, clock()
    if timeout_s is not None:
        deadline_ns = deadline_after(now_ns, timeout_s)
    elif offered.slo is not None and (slo_ns := offered.slo.slo_ns) is not None:
        deadline_ns = now_ns + slo_ns

    async def ask(row: Any) -> Any:
        response = await places.call(Request(row, deadline_ns=deadline_ns, **fields))
        return response.outputs

    return join_rows(await answer_all(rows, ask, default_concurrency(offered.full_load), return_exceptions=False))
