"""Splits a batch into requests: one for all rows, or one for each row.

A server rejects a request as a whole, so a rejected batch is sent again in halves: if the model rejects one of 32 rows,
that row fails alone, after at most 2·log₂ 32 more requests, and the other rows get their responses. The same is done if
the message of a batch is too large for the server.

Models without a batch axis, with sequences, and decoupled models get one request per row, all rows at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer.backends.signature import zeros
from streaminfer.backends.triton.dtypes import as_array
from streaminfer.backends.triton.errors import ServerError, from_status, is_not_loaded, outgrown, too_large
from streaminfer.backends.triton.sequences import NotSent, SequenceLost, Sequences
from streaminfer.backends.triton.session import Parameters, Session
from streaminfer.backends.triton.settings import Settings
from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput, StreamInferError
from streaminfer.request import NEVER_NS, Batch, Request, deadline_after

__all__ = ["RequestSplitter"]

_SEQUENCE_UNKNOWN = ("must specify the start flag",)
_MODEL_REPLACED = ("unexpected shape for input", "unexpected inference input", "unexpected inference output",
               "data-type is", "but missing required input")  # fmt: skip
_END: Any = object()


class RequestSplitter:
    """Sends batches to one model, through one session.

    Args:
        session: the session with the server.
        settings: settings of the backend.
        model_lost: called when the server no longer has the model in memory.
    """

    def __init__(self, session: Session, settings: Settings, model_lost: Callable[[], None]) -> None:
        self.session = session
        self._settings = settings
        self._name = settings.name
        self._model_lost = model_lost

    def validate(self, request: Request) -> None:
        """Check a request's inputs against the model's current description.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        session = self.session
        session.signature.check(request.inputs)
        if isinstance(request.inputs, Mapping) and not request.inputs:
            raise InvalidInput(f"inputs: expected at least one input of model {session.model.name!r}, got none")
        if session.sequences is not None and request.stream_id is None:
            raise InvalidInput(
                f"stream_id: expected one, since model {session.model.name!r} keeps state for each stream, got None"
            )

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return one result per row; if each row is a separate request, a failed row's result is its error.

        Raises:
            StreamInferError: the whole batch failed.
        """
        inputs = self.session.signature.batch_by_name(batch.inputs, self._name)
        model = self.session.model
        if not model.by_row:
            limit = model.max_batch_size
            if limit and batch.size > limit:
                raise BackendError(
                    f"{self._name}: expected at most {limit} rows in a batch, the model's max_batch_size, got "
                    f"{batch.size}: give the batcher max_batch_size={limit}"
                )
            return await self._infer_rows(inputs, batch.size, batch.rows, batch.deadline_ns)
        singles = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(len(batch.rows))]
        deadlines_ns = [
            batch.deadline_ns if row.deadline_ns in {None, NEVER_NS} else row.deadline_ns for row in batch.rows
        ]
        if self.session.sequences is not None:
            return await self._infer_steps(self.session.sequences, batch, singles, deadlines_ns)
        infer_row = self._only_response if model.decoupled else self._infer_row
        calls = map(infer_row, batch.rows, singles, deadlines_ns)
        return await asyncio.gather(*calls, return_exceptions=True)

    async def _infer_steps(
        self,
        sequences: Sequences,
        batch: Batch,
        singles: Sequence[Mapping[str, Any]],
        deadlines_ns: Sequence[int | None],
    ) -> list[Any]:
        """Run a step for each row; lose a sequence whose caller left before it got the response to its step."""
        correlations: dict[int, int | str] = {}

        async def run(number: int) -> Any:
            row = batch.rows[number]
            result, correlations[number] = await self.step(row, singles[number], deadlines_ns[number], end=False)
            if number in batch.left(self._settings.clock()):  # before the stream's next step begins
                sequences.lose(row.stream_id, correlations[number])
            return result

        numbers = range(len(batch.rows))
        try:
            results = await asyncio.gather(*map(run, numbers), return_exceptions=True)
        except asyncio.CancelledError:
            for number, correlation in correlations.items():
                sequences.lose(batch.rows[number].stream_id, correlation)
            raise
        for abandoned in batch.left(self._settings.clock()):  # callers that left after their step, while the batch ran
            lost_correlation = correlations.get(abandoned)
            if lost_correlation is None or not sequences.lose(batch.rows[abandoned].stream_id, lost_correlation):
                continue
            for later in numbers[abandoned + 1 :]:
                if correlations.get(later) == lost_correlation:
                    results[later] = SequenceLost.after_lost_step(batch.rows[later].stream_id)
        return results

    async def _infer_rows(
        self, inputs: Mapping[str, Any], size: int, rows: Sequence[Request], deadline_ns: int | None
    ) -> list[Any]:
        parameters = self.parameters(rows)
        changes = self.session.changes
        timeout_s = self.left_s(deadline_ns)
        if self.session.model.takes_timeout:
            parameters["timeout"] = max(round(timeout_s * 1e6), 1)
        error: StreamInferError
        may_split = True
        try:
            results = await self.session.infer(inputs, size, parameters, timeout_s)
        except ServerError as failure:
            error = await self._error(failure, f"{self._name}, a batch of {len(rows)}", inputs, changes)
            may_split = too_large(failure) or isinstance(error, InvalidInput)
        except InvalidInput as unsendable:  # text of one row cannot be encoded, so halves may succeed
            error = unsendable
        else:
            return results[: len(rows)]
        try:
            if not may_split or len(rows) == 1:
                raise error
        finally:
            del error  # its traceback holds this frame, and thus the inputs
        self.session.counts.split += 1
        middle = (len(rows) + 1) // 2
        halves = (slice(0, middle), slice(middle, len(rows)))
        first, second = await asyncio.gather(*(self._infer_part(inputs, rows, part, deadline_ns) for part in halves))
        return first + second

    async def _infer_part(
        self, inputs: Mapping[str, Any], rows: Sequence[Request], part: slice, deadline_ns: int | None
    ) -> list[Any]:
        """Return one result per row of a part; if it fails, that is the error."""
        inputs, rows = {name: array[part] for name, array in inputs.items()}, rows[part]
        try:
            return await self._infer_rows(inputs, len(rows), rows, deadline_ns)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rows of the other part continue
            return [error] * len(rows)

    async def _infer_row(self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None) -> Any:
        """Run one row of a model without a batch axis."""
        changes = self.session.changes
        try:
            results = await self.session.infer(arrays, 1, self.parameters((row,)), self.left_s(deadline_ns))
        except ServerError as failure:
            raise await self._error(failure, self._name, arrays, changes)  # noqa: B904 - it has a cause
        return results[0]

    async def step(
        self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None, *, end: bool
    ) -> tuple[Any, int | str]:
        """Run one step of a sequence, in its turn.

        Args:
            row: the request.
            arrays: the request's inputs, as a batch of one.
            deadline_ns: deadline of the step.
            end: whether this is the last step of the sequence.

        Returns:
            The result, and the id of the sequence that has taken the step.

        Raises:
            StreamInferError: the step failed, or its outcome is not known.
        """
        if row.stream_id is None:
            raise InvalidInput(f"stream_id: expected one, since {self._name} keeps state for each stream, got None")
        async with self._turn(row, deadline_ns, end=end) as (correlation, parameters, timeout_s):
            changes = self.session.changes
            try:
                if self.session.model.decoupled:
                    results = [await self._only_response(row, arrays, deadline_ns, parameters)]
                else:
                    results = await self.session.infer(arrays, 1, parameters, timeout_s)
            except ServerError as failure:
                call = f"{self._name}, a step of stream {row.stream_id!r}"
                raise await self._error(failure, call, arrays, changes, row.stream_id)  # noqa: B904 - it has a cause
            except InvalidInput as unsendable:
                raise NotSent(unsendable) from unsendable.__cause__
        return results[0], correlation

    async def _responses_of_step(
        self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None, *, end: bool = False
    ) -> AsyncGenerator[Any, None]:
        """Yield the responses to a step of a sequence, in its turn; lose the sequence if the caller leaves early."""
        async with self._turn(row, deadline_ns, end=end) as (_, parameters, _):
            responses = self.responses(arrays, parameters, deadline_ns, row.stream_id)
            async with contextlib.aclosing(responses):
                async for response in responses:
                    yield response

    @contextlib.asynccontextmanager
    async def _turn(
        self, row: Request, deadline_ns: int | None, *, end: bool
    ) -> AsyncIterator[tuple[int | str, Parameters, float]]:
        """Wait for the turn of a step; yield the sequence's id, the step's parameters and the seconds that are left.

        Raises:
            DeadlineExceeded: earlier steps took until after this step's deadline.
        """
        assert self.session.sequences is not None  # noqa: S101 - all callers check this
        now_ns = self._settings.clock
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.left_s(deadline_ns) + 0.001):
                    step = self.session.sequences.step(row.stream_id, now_ns(), end=end)
                    stream = await stack.enter_async_context(step)
            except TimeoutError as error:
                if isinstance(error, DeadlineExceeded):
                    raise
                raise DeadlineExceeded(f"{self._name}: the deadline passed before the step's turn") from error
            try:
                timeout_s = self.left_s(deadline_ns)
            except DeadlineExceeded as late:
                raise NotSent(late) from None
            yield stream.correlation, {**self.parameters((row,)), **stream.parameters(end=end)}, timeout_s
            stream.seen_ns = now_ns()

    async def _error(
        self, failure: ServerError, request: str, arrays: Mapping[str, Any], changes: int, stream_id: Hashable = None
    ) -> StreamInferError:
        """Return the error for callers; not an `InvalidInput` if the server rejected valid inputs of a replaced model.

        In that case, and if an output did not fit into shared memory, the model's description is read again, for later
        requests.

        Args:
            failure: the server's failure.
            request: the backend and the request, for the message.
            arrays: the inputs, with a batch axis.
            changes: the session's ``changes`` when the request was sent.
            stream_id: the request's, if it was a step of a sequence.
        """
        if failure.says(_SEQUENCE_UNKNOWN):
            lost = SequenceLost(
                f"{self._name}: the server has forgotten the state of stream {stream_id!r}: it was idle too long, or "
                f"the model was restarted ({failure.text})"
            )
            lost.__cause__ = failure.__cause__ or failure
            return lost
        if is_not_loaded(failure):
            self._model_lost()
        error = from_status(failure, request)
        if outgrown(failure):
            await self.session.refresh_model(changes)
        is_of_input = isinstance(error, InvalidInput) or failure.status == "UNKNOWN"  # the status of errors on streams
        if not is_of_input or not failure.says(_MODEL_REPLACED):
            return error
        try:
            self.session.signature.check({name: array[0, ...] for name, array in arrays.items()})
        except InvalidInput:
            return error
        replaced = BackendError(
            f"{request}: the server rejected inputs that match the model's description: the model was replaced "
            f"({failure.text})"
        )
        replaced.retryable = False  # type: ignore[attr-defined]
        replaced.__cause__ = error.__cause__
        await self.session.refresh_model(changes)
        return replaced

    async def _only_response(
        self,
        row: Request,
        arrays: Mapping[str, Any],
        deadline_ns: int | None,
        parameters: Parameters | None = None,
    ) -> Any:
        """Return the result of a decoupled model that sends one response per request."""
        started_ns = self._settings.clock()
        if deadline_ns is None:
            deadline_ns = deadline_after(started_ns, self._settings.timeout_s)
        results = []
        parameters = parameters or self.parameters((row,))
        async with contextlib.aclosing(self.responses(arrays, parameters, deadline_ns, row.stream_id)) as responses:
            async for response in responses:
                results.append(response)
                if len(results) > 1:
                    break
        if len(results) != 1:
            raise BackendError(
                f"{self._name}: expected one response to a request, got {'more' if results else 'none'}: the model is "
                "decoupled; TritonBackend.stream(request) yields all responses"
            )
        self.session.counts.add_round_trip(self._settings.clock() - started_ns)
        return results[0]

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """Validate a request and yield its responses as they come; see ``TritonBackend.stream``."""
        self.validate(request)
        with self.session.streams:
            deadline_ns = None if request.deadline_ns == NEVER_NS else request.deadline_ns
            arrays = self.batch_of_one(request)
            if self.session.sequences is None:
                responses = self.responses(arrays, self.parameters((request,)), deadline_ns)
            else:
                responses = self._responses_of_step(request, arrays, deadline_ns)
            async with contextlib.aclosing(responses):
                while True:
                    with self.session.stream_reads:  # not counted while the caller handles a response
                        response = await anext(responses, _END)
                    if response is _END:
                        return
                    yield response

    async def end_stream(self, stream_id: Hashable, inputs: Any, timeout_s: float) -> Any:
        """Run the last step of a stream; see ``TritonBackend.end_stream``."""
        session = self.session
        if session.sequences is None:
            raise RuntimeError(f"model {session.model.name!r} has no sequences, so there is none to end")
        if inputs is None and not session.sequences.knows(stream_id):
            return None
        if inputs is None:
            inputs = {spec.name: zeros(spec) for spec in session.model.inputs}
        request = Request(inputs, stream_id=stream_id)
        self.validate(request)
        deadline_ns = deadline_after(self._settings.clock(), timeout_s)
        arrays = self.batch_of_one(request)
        with session.calls:
            if not session.model.decoupled:
                return (await self.step(request, arrays, deadline_ns, end=True))[0]
            responses = self._responses_of_step(request, arrays, deadline_ns, end=True)
            return ([response async for response in responses] or [None])[-1]

    async def responses(
        self,
        arrays: Mapping[str, Any],
        parameters: Parameters,
        deadline_ns: int | None,
        stream_id: Hashable = None,
    ) -> AsyncGenerator[Any, None]:
        """Yield the responses to one request, as they come.

        Args:
            arrays: the request's inputs, a batch of one.
            parameters: parameters of the request.
            deadline_ns: deadline of the last response; ``None``: each response has ``timeout_s`` instead.
            stream_id: the stream of the request, for the message.

        Raises:
            StreamInferError: the stream failed before its end.
        """
        changes, batched = self.session.changes, self.session.model.max_batch_size != 0
        parameters = {**parameters, "triton_enable_empty_final_response": True}
        timeout_s = None if deadline_ns is None else self.left_s(deadline_ns)
        silence_s = self._settings.timeout_s if deadline_ns is None else None
        end_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        try:
            stream = self.session.transport.stream(self.session.call(arrays, parameters), timeout_s)
            async with contextlib.aclosing(stream) as responses:
                while True:
                    async with asyncio.timeout(silence_s) as limit:
                        response = await anext(responses, _END)
                    if response is _END:
                        break
                    if response.final and not response.outputs:
                        return
                    by_s = limit.when() if end_s is None else end_s
                    yield (await self.session.read(response, 1, changes, batched=batched, end_s=by_s))[0]
                    if response.final:
                        return
        except ServerError as failure:
            if failure.status == "UNKNOWN" and deadline_ns is not None and self._settings.clock() >= deadline_ns:
                # an error on a stream has a text but no status, even if the server noticed the deadline first
                late = f"{self._name}, a stream of responses: the deadline passed ({failure.text})"
                raise DeadlineExceeded(late) from failure
            call = f"{self._name}, a stream of responses"
            raise await self._error(failure, call, arrays, changes, stream_id)  # noqa: B904 - it has a cause
        except TimeoutError as silent:
            raise DeadlineExceeded(f"{self._name}, a stream of responses: nothing came for {silence_s} s") from silent
        raise BackendError(f"{self._name}: the stream of responses ended without a final one")

    def batch_of_one(self, request: Request) -> dict[str, Any]:
        """Return the inputs of a valid request by name, with a batch axis."""
        inputs = request.inputs
        if not isinstance(inputs, Mapping):
            inputs = {self.session.signature.only_input: inputs}
        return {name: as_array(value)[np.newaxis] for name, value in inputs.items()}

    def parameters(self, rows: Sequence[Request]) -> dict[str, int | bool | str]:
        """Return the most urgent row's priority, relative to the model's default; empty if the model has no levels."""
        model = self.session.model
        if not model.priority_levels:
            return {}
        urgent = min(row.priority for row in rows)
        return {"priority": min(max(model.default_priority + urgent, 1), model.priority_levels)} if urgent else {}

    def left_s(self, deadline_ns: int | None) -> float:
        """Return the seconds until a deadline.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if deadline_ns is None or deadline_ns == NEVER_NS:
            return self._settings.timeout_s
        left_s = (deadline_ns - self._settings.clock()) / 1e9
        if left_s <= 0:
            raise DeadlineExceeded(f"{self._name}: the deadline had passed {-left_s:.6f} s before the request was sent")
        return left_s
