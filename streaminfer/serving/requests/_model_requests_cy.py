"""Requests to one model, from the parsed head and rows to the response of the stack.

One source, compiled with the C types of ``_model_requests_cy.pxd``, or run as Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from streaminfer._request_cy import make_request
from streaminfer._runtime.closing import close_answers
from streaminfer._runtime.rows import join_rows
from streaminfer._stack.many_calls import answer_all, default_concurrency
from streaminfer.errors import BackendError, CircuitOpen, Closed, InvalidInput, Overloaded
from streaminfer.protocols import ModelTensors, adapt
from streaminfer.request import deadline_after, time_left_s
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.requests._model_counters_cy import ModelCounters
from streaminfer.serving.requests.infer_response import announced_datatypes
from streaminfer.serving.requests.timed_answers import TimedAnswers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import numpy.typing as npt

    from streaminfer._stack._chain_cy import Chain, Passage
    from streaminfer.request import Request, Response
    from streaminfer.serving.deadlines import RequestSettings
    from streaminfer.serving.requests._infer_head_cy import InferHead
    from streaminfer.stack import Stack

__all__ = ["ModelCall", "ModelRequests"]

_REJECTIONS = (CircuitOpen, Closed, Overloaded)
"""Errors after which a client is told to send the request again."""
_RENEW_INTERVAL_NS = 1_000_000_000
_MAX_HEADS = 64
_MAX_HEAD_BYTES = 1024
"""Limits of stored heads and their size: most clients send few kinds of requests, each many times."""


class ModelRequests:
    """Requests to a stack under the name that clients use.

    Args:
        name: the name of the model.
        stack: the stack that serves the model.

    Attributes:
        name: the name of the model.
        stack: the stack that serves the model.
        counters: counters of the completed requests.
        tensors: the inputs and outputs of the model, as last read; ``None``: not known.
        announced: the types of the outputs, as far as they are known.
        heads: parsed heads that later requests can share, by their text.
    """

    def __init__(self, name: str, stack: Stack) -> None:
        self.name = name
        self.stack = stack
        self.counters = ModelCounters()
        self.tensors: ModelTensors | None = None
        self._renew_ns = 0  # instant at which the capabilities are read again; 0: at the next request
        self.heads: dict[bytes, InferHead] = {}

    def now_ns(self) -> int:
        """Return the current instant of the stack's clock."""
        return self.stack.clock()

    def head(self, message: Any, length: int, now_ns: int) -> InferHead | None:
        """Return the head of an earlier request with the same text; ``None`` if the text has to be parsed.

        Reads the stack's capabilities first, at most once a second while the stack is ready.

        Args:
            message: a message that begins with the text of the head.
            length: length of the text; 0: the head is not shared.
            now_ns: the current instant.
        """
        if now_ns >= self._renew_ns:
            self._renew(now_ns)
        if not 0 < length <= _MAX_HEAD_BYTES:
            return None
        return self.heads.get(message[:length] if type(message) is bytes else bytes(message[:length]))

    def store_head(self, message: Any, length: int, head: InferHead) -> None:
        """Store a head for later requests, if they can share it.

        Args:
            message: a message that begins with the text of the head.
            length: length of the text; 0: the head is not shared.
            head: the parsed head.
        """
        if head.is_reusable and 0 < length <= _MAX_HEAD_BYTES:
            if len(self.heads) == _MAX_HEADS:
                self.heads.clear()
            self.heads[bytes(message[:length])] = head

    def begin(
        self,
        head: InferHead,
        rows: list[Any],
        settings: RequestSettings,
        arrived_ns: int,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> ModelCall:
        """Send a request to the stack.

        Args:
            head: the head of the request.
            rows: the inputs of each row.
            settings: settings of the request.
            arrived_ns: instant of its arrival.
            loop: the running loop, if the caller knows it.

        Raises:
            StreamInferError: the stack rejects the request.
        """
        call = ModelCall.__new__(ModelCall)
        call.model = self
        call.head = head
        call._arrived_ns = arrived_ns
        call._deadline_ns = deadline_ns = self._deadline_ns_of(settings.timeout_s, arrived_ns)
        call._ended_stream = call._passage = call._responses = None
        call.arrays = call.time_left_s = call.stream = call.row = call.parts = None
        stream_id = settings.stream_id
        try:
            if stream_id is not None:
                self._begin_in_stream(call, settings)
            priority, tenant = settings.priority, settings.tenant  # already validated
            if head.rows == 1:
                request = make_request(rows[0], deadline_ns, priority, stream_id, tenant, None, (), None, True)
                call._chain = self.stack._chain
                call._passage = call._chain.open_request(request, None, loop)
                call.awaited = call._passage.awaited
            else:
                requests = [
                    make_request(row, deadline_ns, priority, stream_id, tenant, None, (), None, True) for row in rows
                ]
                call.awaited = self._call_each(requests, arrived_ns)
        except BaseException as error:
            call._fail(error)
            raise
        return call

    def _begin_in_stream(self, call: ModelCall, settings: RequestSettings) -> None:
        """Start or end the model's state of the stream, as the request demands."""
        states = self._capabilities.stream_states
        if states is None:
            return
        if call.head.rows != 1:
            raise InvalidInput(f"inputs: expected one row in each request of a sequence, got {call.head.rows}")
        if settings.ends_stream:
            call._ended_stream = settings.stream_id
        if settings.starts_stream:
            states.reset_stream(settings.stream_id)

    def _deadline_ns_of(self, timeout_s: float | None, arrived_ns: int) -> int | None:
        """Return the earlier of the objective's and the client's deadline; ``None`` without either."""
        objective = self._capabilities.slo
        slo_ns = None if objective is None else objective.slo_ns
        deadline_ns = None if slo_ns is None else arrived_ns + slo_ns
        if timeout_s is not None:
            client_deadline_ns = deadline_after(arrived_ns, timeout_s)
            deadline_ns = client_deadline_ns if deadline_ns is None else min(deadline_ns, client_deadline_ns)
        return deadline_ns

    async def _call_each(self, requests: list[Request], now_ns: int) -> list[Response]:
        """Call the stack for several rows: once it accepts one of them, the others wait for places in the queue."""
        first: list[Response] = []
        try:
            if not self.stack.admission(requests[0], now_ns).ok:
                first.append(await self.stack.call(requests[0]))  # raises the reason of the rejection
            remaining = requests[len(first) :]
            concurrency = min(len(remaining), default_concurrency(self._capabilities))
            return first + await answer_all(remaining, self.stack._places().call, concurrency, return_exceptions=False)
        except BaseException:
            for response in first:
                await close_answers(response)
            raise

    def _renew(self, now_ns: int) -> None:
        """Read the stack's capabilities."""
        self._capabilities = adapt(self.stack).capabilities()
        describe = self._capabilities.model_tensors
        tensors = None if describe is None else describe()
        if tensors != self.tensors:
            self.heads.clear()
        self.tensors = tensors
        self.announced = announced_datatypes(tensors)
        self._output_names = () if tensors is None else tuple([spec.name for spec in tensors.outputs])
        self._renew_ns = now_ns + _RENEW_INTERVAL_NS if self.stack.ready else 0

    def _joined(self, outputs: list[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of all rows by name, with the rows on the first axis."""
        rows = [_outputs_by_name(one, self._output_names) for one in outputs]
        if len(rows) == 1:
            return {name: array[np.newaxis] for name, array in rows[0].items()}
        joined: dict[str, npt.NDArray[Any]] = join_rows(rows)
        return joined


class ModelCall:
    """One request to a model, with the response to all of its rows once it is complete.

    Attributes:
        model: the model that is called.
        head: the head of the request.
        awaited: the stack's awaitable for the request.
        arrays: the outputs by name; the first axis holds the rows.
        time_left_s: seconds left until the deadline; ``None``: no deadline.
        stream: in place of ``arrays``, the responses of a model that has several per request, once it is open.
        row: the outputs of the only row, as the stack returned them.
        parts: in place of ``arrays``, parts of a response that is like the last one to such a request.
    """

    _arrived_ns: int
    _chain: Chain
    _deadline_ns: int | None
    _ended_stream: Hashable  # the stream that ends with the request; None: no stream ends
    _passage: Passage | None  # of the only row; None: there are several rows, or a layer has responded
    _responses: list[Response] | None
    head: InferHead
    model: ModelRequests
    awaited: Any
    arrays: Mapping[str, npt.NDArray[Any]] | None
    time_left_s: float | None
    stream: AsyncGenerator[Mapping[str, npt.NDArray[Any]], None] | None
    row: Any
    parts: list[Any] | None

    async def complete(self, takes_many: bool) -> None:
        """Await the response, and open the stream of a model that has many responses.

        Args:
            takes_many: whether the client takes any number of responses.

        Raises:
            StreamInferError: the request failed, or the client does not take many responses.
        """
        try:
            outcome = await self.awaited
        except BaseException as error:
            outcome = self._failed(error)
            if outcome is None:
                raise
        self._end(outcome)
        if self._responses is not None:
            await self._open_stream(takes_many)

    def _failed(self, error: BaseException) -> list[Response] | None:
        """End the request with an error, a cancellation included.

        Returns:
            The response that a layer of the stack made of the error; ``None``: there is none.
        """
        passage, self._passage = self._passage, None
        self.awaited = None  # it holds the error, and the error's traceback holds this call
        try:
            response = None if passage is None else self._chain.failed(passage, error)
        except BaseException as raised:
            self._fail(raised)
            raise
        if response is None:
            self._fail(error)
            return None
        return [response]

    def _end(self, outcome: Any) -> None:
        """End the request with the awaited outcome."""
        model, head = self.model, self.head
        try:
            responses = outcome if self._passage is None else [self._chain.response(self._passage, outcome)]
            outputs = responses[0].outputs
            if head.row_reply is not None:
                self.parts = head.row_reply.render(outputs)
            if self.parts is None and type(outputs) is not ndarray and isinstance(outputs, AsyncIterator):
                self._responses = responses
            elif self.parts is None:
                self.arrays = model._joined([response.outputs for response in responses])
            if self._responses is None:
                self._end_stream()
        except BaseException:
            self._fail(None)
            raise
        now_ns = model.now_ns()
        if self._deadline_ns is not None:
            self.time_left_s = time_left_s(self._deadline_ns, now_ns)
        if self._responses is None:
            model.counters.succeed(responses, self._arrived_ns, now_ns)
            self.row = outputs if head.rows == 1 else None

    async def _open_stream(self, takes_many: bool) -> None:
        """Open the responses as :attr:`stream`, if the client takes them."""
        responses = self._responses or []
        if takes_many and len(responses) == 1:
            self.stream = self._answers(responses[0])
            return
        self._fail(None)
        for response in responses:
            await close_answers(response)
        if takes_many:
            raise InvalidInput(f"inputs: expected one row for a model with many answers, got {len(responses)}")
        raise RequestRejected(
            501,
            f"model {self.model.name!r} has many answers to a request: expected generate_stream or ModelStreamInfer",
        )

    async def _answers(self, response: Response) -> AsyncGenerator[dict[str, npt.NDArray[Any]], None]:
        """Yield the responses of a model that has many, until the deadline; then end the stream, if it is to end."""
        model, has_begun = self.model, False
        timed_answers = TimedAnswers(response, self._deadline_ns, model.stack.clock)
        try:
            async for outputs in timed_answers:
                joined = model._joined([outputs])
                has_begun = True
                yield joined
        except BaseException as error:
            model.counters.fail(model.now_ns() - self._arrived_ns)
            if not has_begun and isinstance(error, _REJECTIONS):
                self._ended_stream = None
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
                raise Closed(f"model {model.name!r} was stopped before its last answer") from None
            raise
        else:
            model.counters.succeed([response], self._arrived_ns, model.now_ns())
        finally:
            try:
                await timed_answers.aclose()
            finally:
                self._end_stream()

    def _fail(self, error: BaseException | None) -> None:
        """Count a failure; end the stream, unless the stack rejected the request, which the client then sends again."""
        self.model.counters.fail(self.model.now_ns() - self._arrived_ns)
        if not isinstance(error, _REJECTIONS):
            self._end_stream()

    def _end_stream(self) -> None:
        """End the stream, if it is to end with this request."""
        states, stream_id, self._ended_stream = self.model._capabilities.stream_states, self._ended_stream, None
        if states is not None and stream_id is not None:
            states.end_stream(stream_id)


def _outputs_by_name(outputs: Any, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs of one row by name, as arrays."""
    if isinstance(outputs, Mapping):
        by_name = dict(outputs)
    elif isinstance(outputs, tuple):
        output_names = names if len(names) == len(outputs) else [f"output_{number}" for number in range(len(outputs))]
        by_name = dict(zip(output_names, outputs, strict=True))
    else:
        by_name = {names[0] if len(names) == 1 else "output": outputs}
    try:
        return {str(name): _as_array(value) for name, value in by_name.items()}
    except ValueError as error:
        raise BackendError(f"the outputs are no tensors: {error}") from error


def _as_array(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind in "SU":  # these depend on the longest text, and drop zeros at the end of a text
        texts = np.asarray(value, object)
        return texts if all(isinstance(it, (str, bytes)) for it in texts.flat) else array.astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
