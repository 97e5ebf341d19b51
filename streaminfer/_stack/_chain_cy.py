"""Chain of layers: one coroutine per request runs all synchronous layers around one awaited terminal.

*Design.* A `SyncLayer` defines what it does before a request (``enter``) and after it (``exit``), and awaits nothing.
Consecutive layers of this kind therefore need no coroutine each: the stack enters them in order, awaits the terminal,
and exits the entered layers in reverse order. The terminal is the awaited part: the ticket of a batcher, else the
``call`` of the first service that is no such layer.

A request with a callback for its end (:meth:`Chain.open_request`) needs no coroutine at all: its `Passage` takes the
place of a future, and its batch settles it.

*Invariants.* Each ``enter`` that returned is followed by exactly one ``exit``, however the request ends: by a response,
by an error of the terminal or of another layer's ``enter`` or ``exit``, or by a cancellation. The outcome that a layer
sees is that of the layers inside it.

One source, compiled with the C types of ``_chain_cy.pxd`` or run as plain Python.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import LISTENER_ERRORS, raise_in_loop
from streaminfer._internal.validation import brief, expected
from streaminfer._request_cy import Request, make_request, make_response, with_deadline
from streaminfer._runtime.closing import close_unread
from streaminfer.errors import Closed, DeadlineExceeded
from streaminfer.request import deadline_after

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:  # there `current_task` is a Python function, which takes a twentieth of the time of a cached response
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]

    current_task = _current_tasks.get

if TYPE_CHECKING:
    from streaminfer._request_cy import Response
    from streaminfer.protocols import Clock

__all__ = ["Chain", "Passage"]


class Passage:
    """One request in a chain; also the future of its ticket, if no caller awaits it.

    Attributes:
        request: the request.
        awaited: the awaitable for the caller.
        ticket: the batcher's ticket, if a batcher is the terminal.
    """

    request: Request
    awaited: Any
    ticket: Any
    _tokens: list[Any] | None  # of the entered layers; None: there are no layers
    _chain: Chain | None  # the chain that settles it
    _is_counted: bool  # whether the chain counts it as in flight
    _cancelled: asyncio.Task[Any] | None  # its caller's task, if a stop has cancelled it
    _receive: Callable[[Response | None, BaseException | None], None] | None  # called once at its end

    def done(self) -> bool:
        """Return whether the request has ended."""
        return self._receive is None

    def set_result(self, outputs: Any) -> None:
        """End the request with the outputs of the batch."""
        self._end(outputs, None)

    def set_exception(self, error: BaseException) -> None:
        """End the request with the error of the batcher."""
        self._end(None, error)

    def cancel(self) -> None:
        """End the request with ``CancelledError``, unless it has ended."""
        self._end(None, asyncio.CancelledError())

    def _end(self, outputs: Any, error: BaseException | None) -> None:
        receive = self._receive
        chain = self._chain
        if receive is None or chain is None:
            return
        self._receive = None
        response = None
        try:
            response = chain.response(self, outputs) if error is None else chain.failed(self, error)
        except BaseException as raised:  # noqa: BLE001 - of a layer: it is the outcome
            error = raised
        _notify(receive, response, error if response is None else None)


class Chain:
    """Layers and the terminal inside them; belongs to one event loop at a time.

    Args:
        enters: ``enter`` of each layer, outermost first.
        exits: ``exit`` of each layer, in the same order.
        validate: raises `InvalidInput` for a request with wrong inputs; or ``None``.
        validate_at: number of layers that are entered before ``validate``.
        objective: has ``slo_ns``, for requests without a deadline; or ``None``.
        batcher: the terminal, if it returns tickets; or ``None``.
        call: the terminal's ``call`` without a batcher.
        reject: raises the error for a call from another event loop.
        clock: returns monotonic nanoseconds.
        wait: sends a request when the queue has room.

    Attributes:
        loop: event loop of the callers; ``None``: the chain accepts no requests.
        idle: future that is set when no request is in flight any more; ``None``: no stop waits for that.
        batcher: the argument ``batcher``.
        clock: the argument ``clock``.
    """

    def __init__(
        self,
        enters: Sequence[Callable[..., Any]],
        exits: Sequence[Callable[..., Any]],
        validate: Callable[[Request], None] | None,
        validate_at: int,
        objective: Any,
        batcher: Any,
        call: Callable[[Request], Awaitable[Response]],
        reject: Callable[[], None],
        clock: Clock,
        wait: Callable[[Request], Awaitable[Response]],
    ) -> None:
        self._enters = tuple(enters)
        self._exits = tuple(exits)
        self._validate = validate
        self._validate_at = validate_at
        self._objective = objective
        self.batcher = batcher
        self._submit: Callable[..., Any] | None = None if batcher is None else batcher.submit
        self._batcher_has_clock = batcher is not None and batcher.clock is clock
        self._source = "" if batcher is None else batcher.source
        self._call = call
        self._reject = reject
        self.clock: Clock = clock
        self.loop: asyncio.AbstractEventLoop | None = None
        self._wait = wait
        self._tasks: dict[Passage, Any] = {}  # tasks of callers, if the terminal is no batcher
        self.idle: asyncio.Future[None] | None = None

    def in_flight(self) -> int:
        """Return the number of requests in flight at a terminal that is not a batcher."""
        return len(self._tasks)

    def end_requests(self) -> None:
        """End requests in flight with `Closed`, if the stop of inner parts did not, because others use them."""
        for passage, task in self._tasks.items():
            if task is not None and not task.cancelling():  # otherwise it is about to end
                passage._cancelled = task
                task.cancel()

    def open(
        self,
        inputs: Any,
        timeout_s: float | None,
        priority: int,
        stream_id: Hashable,
        tenant: str | None,
        subject: str | None,
        tags: Iterable[str],
        key: Hashable,
        store: bool,
        waits: bool,
    ) -> Passage:
        """Make a request and enter the layers with it.

        Args:
            inputs: inputs of the request.
            timeout_s: seconds from now until the deadline; ``None``: the deadline of the objective.
            priority: priority of the request.
            stream_id: stream of the request.
            tenant: tenant of the request.
            subject: subject of the request.
            tags: tags of the request.
            key: key of the request.
            store: whether a cache may store the response.
            waits: whether to wait for room if the queue is full; the request then comes back through the stack later.

        Returns:
            The passage. The caller awaits its ``awaited`` and then calls :meth:`outputs`, :meth:`response` or
            :meth:`failed` once.
        """
        if get_running_loop() is not self.loop:
            self._reject()
        now_ns = self.clock()
        deadline_ns = self.deadline_ns(None, timeout_s, now_ns)
        request = make_request(inputs, deadline_ns, priority, stream_id, tenant, subject, tags, key, store)
        if waits:
            passage = self._new_passage(request, None)
            passage.awaited = self._wait(request)
            return passage
        return self._enter(request, now_ns, None)

    def open_request(
        self,
        request: Request,
        timeout_s: float | None,
        loop: asyncio.AbstractEventLoop | None = None,
        receive: Callable[[Response | None, BaseException | None], None] | None = None,
    ) -> Passage:
        """Enter the layers with a request, as :meth:`open` does.

        Args:
            request: of the caller.
            timeout_s: seconds from now until the deadline; ``None``: the request's deadline, or the objective's.
            loop: the running loop, if the caller knows it; finding it is a system call.
            receive: for a request that no caller awaits; the terminal must be a batcher. Called once, on the loop, with
                the response or the error. It is called before this returns only if a layer turned an error into a
                response. Its exceptions go to the loop's exception handler.

        Raises:
            BaseException: the request could not be sent; ``receive`` is not called.
        """
        if (get_running_loop() if loop is None else loop) is not self.loop:
            self._reject()
        now_ns = self.clock()
        deadline_ns = self.deadline_ns(request.deadline_ns, timeout_s, now_ns)
        if deadline_ns is not request.deadline_ns:
            request = with_deadline(request, deadline_ns)
        return self._enter(request, now_ns, receive)

    def outputs(self, passage: Passage, outcome: Any) -> Any:
        """Exit the layers after a response, and return its outputs."""
        if passage._is_counted:
            self._leave(passage)
        if passage._tokens is None:
            return outcome if passage.ticket is not None else _outputs_of(outcome)
        return _outputs_of(self.response(passage, outcome))

    def response(self, passage: Passage, outcome: Any) -> Response:
        """Exit the layers after a response, and return the response, or the one by which a layer replaced it.

        Args:
            passage: of the request.
            outcome: result of ``awaited``.

        Raises:
            BaseException: the error by which a layer replaced it.
        """
        if passage._is_counted:
            self._leave(passage)
        ticket = passage.ticket
        response = outcome if ticket is None else make_response(outcome, self._source, ticket.timings)
        if passage._tokens is not None:
            response = self._exit(passage.request, passage._tokens, response)
            if isinstance(response, BaseException):
                raise response
        return response

    def failed(self, passage: Passage, error: BaseException) -> Response | None:
        """Exit the layers after an error, a cancellation included.

        If a caller is cancelled after the deadline, as gRPC servers do, it stays cancelled; the layers see a missed
        deadline.

        Returns:
            The response by which a layer replaced the error; ``None`` if the error remains.

        Raises:
            BaseException: the error by which a layer replaced it.
        """
        if isinstance(error, asyncio.CancelledError) and passage.ticket is not None and passage.awaited is not None:
            close_unread(passage.awaited)  # outputs may have arrived in the turn of the loop that cancelled the caller
        passage.awaited = None  # breaks a cycle: it holds the error, whose traceback holds the passage
        outcome: Any = error
        if passage._is_counted:
            was_stopped = self._leave(passage)
            if was_stopped and isinstance(error, asyncio.CancelledError):
                outcome = Closed("the stack stopped before it could answer")
        is_late = outcome is error and isinstance(error, asyncio.CancelledError) and self._is_late(passage.request)
        if is_late:
            outcome = DeadlineExceeded("the deadline had passed when the caller was cancelled")
        if passage.ticket is not None:
            self.batcher.abandon(passage.ticket)
        if passage._tokens is not None:
            outcome = self._exit(passage.request, passage._tokens, outcome)
        if is_late or outcome is error:
            return None
        if isinstance(outcome, BaseException):
            raise outcome
        response: Response = outcome
        return response

    def deadline_ns(self, own_ns: int | None, timeout_s: Any, now_ns: int) -> int | None:
        """Return the deadline from the call's ``timeout_s``, else the request's own, else that of the objective."""
        if timeout_s is not None:
            return deadline_after(now_ns, timeout_s)
        if own_ns is None and self._objective is not None:
            slo_ns: int | None = self._objective.slo_ns
            if slo_ns is not None:
                return now_ns + slo_ns
        return own_ns

    def _new_passage(self, request: Request, receive: Any) -> Passage:
        passage = Passage.__new__(Passage)
        passage.request = request
        passage.awaited = passage.ticket = None
        passage._chain = self
        passage._receive = receive
        passage._tokens = None
        passage._is_counted = False
        passage._cancelled = None
        return passage

    def _enter(self, request: Request, now_ns: int, receive: Any) -> Passage:
        """Enter the layers and begin the terminal; ``receive`` is called at the end, unless it is ``None``."""
        passage = self._new_passage(request, receive)
        try:
            position = 0
            if self._enters:
                tokens: list[Any] = []
                passage._tokens = tokens
                for enter in self._enters:
                    if position == self._validate_at and self._validate is not None:
                        self._validate(request)
                    tokens.append(enter(request, now_ns))
                    position += 1
            if position == self._validate_at and self._validate is not None:
                self._validate(request)
            if self._submit is None:
                passage.awaited = self._call(request)
                passage._is_counted = True
                self._tasks[passage] = current_task(self.loop)
            else:
                if not self._batcher_has_clock:
                    now_ns = 0
                future = None if receive is None else passage
                passage.ticket = self._submit(
                    request, request.inputs, request.deadline_ns, request.priority, self.loop, now_ns, future
                )
                if receive is None:  # otherwise it would refer to itself
                    passage.awaited = passage.ticket.future
        except BaseException as error:
            response = self.failed(passage, error)
            if response is None:
                raise
            self._respond(passage, response)
        return passage

    def _is_late(self, request: Request) -> bool:
        deadline_ns: int | None = request.deadline_ns
        return deadline_ns is not None and self.clock() >= deadline_ns

    def _leave(self, passage: Passage) -> bool:
        """Stop counting a passage; return whether a stop, and not its caller, has cancelled it."""
        passage._is_counted = False
        del self._tasks[passage]
        if not self._tasks and self.idle is not None and not self.idle.done():
            self.idle.set_result(None)
        return passage._cancelled is not None and not passage._cancelled.uncancel()

    def _respond(self, passage: Passage, response: Response) -> None:
        """End a passage with the response that a layer made of an error, before the passage reached the terminal."""
        receive = passage._receive
        passage.ticket = passage._tokens = passage._receive = None
        if receive is None:
            passage.awaited = _return_response(response)
        else:
            receive(response, None)

    def _exit(self, request: Request, tokens: list[Any], outcome: Any) -> Any:
        """Exit the entered layers, the innermost first.

        Returns:
            The given outcome, or the one by which a layer replaced it.
        """
        now_ns = self.clock()
        position = len(tokens)
        while position:
            position -= 1
            try:
                changed = self._exits[position](request, tokens[position], outcome, now_ns)
            except BaseException as error:  # noqa: BLE001 - it is the outcome that the layers around see
                changed = error
            if changed is not None:
                outcome = changed
        return outcome


def _outputs_of(response: Any) -> Any:
    try:
        return response.outputs
    except AttributeError:
        raise TypeError(
            expected("response", "a Response, from a service's call and a layer's exit", response)
        ) from None


def _notify(receive: Any, response: Any, error: Any) -> None:
    """Report the end of a request; an exception of its receiver does not affect other requests of its batch."""
    try:
        receive(response, error)
    except LISTENER_ERRORS as failure:  # reported like exceptions of asyncio callbacks
        context = {"message": f"the receiver of a response failed: {brief(receive)}", "exception": failure}
        get_running_loop().call_exception_handler(context)
    except BaseException as interrupt:  # noqa: BLE001 - it is raised in the loop when the others have been told
        raise_in_loop(interrupt)


async def _return_response(response: Any) -> Any:
    """Return the response that a layer made of the error of an inner one."""
    return response
