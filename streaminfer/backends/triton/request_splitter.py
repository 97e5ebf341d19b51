"""How the rows of a batch are asked: all in one request, or each in one of its own.

A server refuses a request as a whole, so a batch that is refused is asked again in halves: of 32 rows, one that the
model does not take fails alone, after at most 2·log₂ 32 more requests, and the others get their answers. So is a
batch whose message is larger than the server takes.

Models without a batch axis, models with sequences and decoupled ones are asked row by row, all rows at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer.backends.signature import TensorSpec, describe
from streaminfer.backends.triton.dtypes import TEXT
from streaminfer.backends.triton.errors import ServerError, from_status, too_large
from streaminfer.backends.triton.sequences import NotSent, SequenceLost
from streaminfer.backends.triton.session import Session
from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput, StreamInferError
from streaminfer.request import NEVER_NS, Batch, Request

__all__ = ["RequestSplitter", "without_axis", "zeros_for"]

_FORGOTTEN = "must specify the start flag"
_OTHER_FORM = ("unexpected shape for input", "unexpected inference input", "unexpected inference output",
               "data-type is", "but missing required input")  # fmt: skip
_END: Any = object()


class RequestSplitter:
    """Asks one model, through one session.

    Args:
        session: to the server.
        what: the backend, for messages.
        timeout_s: seconds for what has no deadline.
        clock: monotonic nanoseconds.

    Attributes:
        split: batches that were refused and asked again in halves.
    """

    def __init__(self, session: Session, what: str, timeout_s: float, clock: Callable[[], int]) -> None:
        self.session = session
        self.what = what
        self.clock = clock
        self.split = 0
        self._timeout_s = timeout_s

    @property
    def has_batch_axis(self) -> bool:
        """Whether requests have one."""
        return self.session.model.max_batch_size != 0

    def validate(self, request: Request) -> None:
        """Checks what a request brings against what the server says now.

        Raises:
            InvalidInput: names the input, what was expected, and what came.
        """
        session = self.session
        session.check.check(request.inputs)
        if session.sequences is not None and request.stream_id is None:
            raise InvalidInput(
                f"stream_id: expected one, since model {session.model.name!r} keeps state for each stream, got None"
            )

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """One result per row, or its error where rows are asked one by one.

        Raises:
            StreamInferError: for the whole batch.
        """
        inputs = self.session.check.by_name(batch.inputs)
        if inputs is None:
            names = ", ".join(map(repr, self.session.check.whole.batch_axes))
            raise BackendError(
                f"{self.what}: expected a batch of stacked arrays for {names}, got "
                f"{describe(batch.inputs)}; a batcher in front of it needs stack=True"
            )
        limit = self.session.model.max_batch_size
        model = self.session.model
        if not model.by_row:
            if limit and batch.size > limit:
                raise BackendError(
                    f"{self.what}: expected at most {limit} rows in a batch, the model's max_batch_size, got "
                    f"{batch.size}: give the batcher max_batch_size={limit}"
                )
            return await self._ask(inputs, batch.size, batch.rows, batch.deadline_ns)
        singles = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(len(batch.rows))]
        calls: list[Coroutine[Any, Any, Any]] = []
        for row, arrays in zip(batch.rows, singles, strict=True):
            deadline_ns = batch.deadline_ns if row.deadline_ns in {None, NEVER_NS} else row.deadline_ns
            if self.session.sequences is not None:
                calls.append(self.step(row, arrays, deadline_ns, end=False))
            elif model.decoupled:
                calls.append(self._only_answer(row, arrays, deadline_ns))
            else:
                calls.append(self._single(row, arrays, deadline_ns))
        return await asyncio.gather(*calls, return_exceptions=True)

    async def _ask(
        self,
        inputs: Mapping[str, Any],
        size: int,
        rows: Sequence[Request],
        deadline_ns: int | None,
    ) -> list[Any]:
        parameters = self.parameters(rows)
        changes = self.session.changes
        timeout_s = self.left(deadline_ns)
        if self.session.model.takes_timeout:
            parameters["timeout"] = max(round(timeout_s * 1e6), 1)
        error: StreamInferError
        fewer = False
        try:
            results = await self.session.ask(inputs, size, parameters, timeout_s, batched=True)
        except ServerError as refused:
            fewer = too_large(refused)
            error = await self._error(refused, f"{self.what}, a batch of {len(rows)}", inputs, changes)
        except InvalidInput as unsendable:  # text that cannot be written down: of one row, not of all
            error = unsendable
        else:
            return results[: len(rows)]
        if not (fewer or isinstance(error, InvalidInput)) or len(rows) == 1:
            raise error
        self.split += 1
        middle = (len(rows) + 1) // 2
        halves = [slice(0, middle), slice(middle, len(rows))]
        answers = await asyncio.gather(
            *(
                self._ask(
                    {name: array[part] for name, array in inputs.items()},
                    part.stop - part.start,
                    rows[part],
                    deadline_ns,
                )
                for part in halves
            ),
            return_exceptions=True,
        )
        results = []
        for part, answer in zip(halves, answers, strict=True):
            results += [answer] * (part.stop - part.start) if isinstance(answer, BaseException) else answer
        return results

    async def _single(self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None) -> Any:
        """A row of a model without a batch axis."""
        alone = without_axis(arrays)
        changes = self.session.changes
        try:
            results = await self.session.ask(alone, 1, self.parameters((row,)), self.left(deadline_ns), batched=False)
        except ServerError as refused:
            error = await self._error(refused, self.what, arrays, changes)
        else:
            return results[0]
        raise error

    async def step(self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None, *, end: bool) -> Any:
        """One step of a sequence, in its turn.

        Args:
            row: whose step it is.
            arrays: its inputs, as a batch of one.
            deadline_ns: of the step.
            end: it is the sequence's last.

        Raises:
            StreamInferError: it was not taken, or nobody knows.
        """
        assert self.session.sequences is not None  # noqa: S101 - both callers look
        if row.stream_id is None:
            raise InvalidInput(f"stream_id: expected one, since {self.what} keeps state for each stream, got None")
        batched = self.has_batch_axis
        sent = arrays if batched else without_axis(arrays)
        try:
            # a step before it may take longer than this one's deadline
            async with (
                asyncio.timeout(self.left(deadline_ns) + 0.001),
                self.session.sequences.step(row.stream_id, self.clock(), end=end) as stream,
            ):
                try:
                    timeout_s = self.left(deadline_ns)
                except DeadlineExceeded as late:
                    raise NotSent(late) from None
                changes = self.session.changes
                parameters = {**self.parameters((row,)), **stream.parameters(end=end)}
                try:
                    results = await self.session.ask(sent, 1, parameters, timeout_s, batched=batched)
                except ServerError as refused:
                    failure = await self._of_step(refused, row.stream_id, arrays, changes)
                    raise failure from failure.__cause__
                except InvalidInput as unsendable:
                    raise NotSent(unsendable) from unsendable.__cause__
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            raise DeadlineExceeded(f"{self.what}: the deadline passed before the step was answered") from error
        return results[0]

    async def _error(
        self, refused: ServerError, what: str, arrays: Mapping[str, Any], changes: int
    ) -> StreamInferError:
        """What callers get; they are not blamed for a model that is not the one that was described.

        Where it is another one, the server is asked what that reads, and later requests are checked by it.

        Args:
            refused: what the server said.
            what: of whom, and to what.
            arrays: what it was asked, with a batch axis.
            changes: how many changes of the model were known when it was asked.
        """
        error = from_status(refused, what)
        if not isinstance(error, InvalidInput) or not any(words in refused.text.lower() for words in _OTHER_FORM):
            return error
        try:
            self.session.check.check({name: array[0, ...] for name, array in arrays.items()})
        except InvalidInput:
            return error
        replaced = BackendError(
            f"{what}: the server refused what it had said that the model reads: the model was replaced ({refused.text})"
        )
        replaced.retryable = False  # type: ignore[attr-defined]
        replaced.__cause__ = error.__cause__
        await self.session.describe_again(changes)
        return replaced

    async def _of_step(
        self, refused: ServerError, stream_id: Hashable, arrays: Mapping[str, Any], changes: int
    ) -> StreamInferError:
        if _FORGOTTEN in refused.text.lower():
            lost = SequenceLost(
                f"{self.what}: the server has forgotten the state of stream {stream_id!r}: it was idle too long, or "
                f"the model was started anew ({refused.text})"
            )
            lost.__cause__ = refused.__cause__ or refused
            return lost
        return await self._error(refused, f"{self.what}, a step of stream {stream_id!r}", arrays, changes)

    async def _only_answer(self, row: Request, arrays: Mapping[str, Any], deadline_ns: int | None) -> Any:
        """A row of a decoupled model that answers it once, as some do."""
        if deadline_ns is None:
            deadline_ns = self.clock() + round(self._timeout_s * 1e9)
        if not self.has_batch_axis:
            arrays = without_axis(arrays)
        found = []
        async with contextlib.aclosing(self.answers(arrays, self.parameters((row,)), deadline_ns)) as answers:
            async for answer in answers:
                found.append(answer)
                if len(found) > 1:
                    break
        if len(found) != 1:
            raise BackendError(
                f"{self.what}: expected one answer to a request, got {'more' if found else 'none'}: the model is "
                "decoupled, TritonBackend.stream(request) takes all of its answers"
            )
        return found[0]

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The answers to a request that was not checked yet, as they come; see ``TritonBackend.stream``."""
        self.validate(request)
        arrays = self.batch_of_one(request)
        if not self.has_batch_axis:
            arrays = without_axis(arrays)
        with self.session.streams:
            deadline_ns = None if request.deadline_ns == NEVER_NS else request.deadline_ns
            answers = self.answers(arrays, self.parameters((request,)), deadline_ns)
            async with contextlib.aclosing(answers):
                while True:
                    with self.session.calls:  # and not while the caller is at work on an answer, or has forgotten us
                        answer = await anext(answers, _END)
                    if answer is _END:
                        return
                    yield answer

    async def end_stream(self, stream_id: Hashable, inputs: Any, timeout_s: float) -> Any:
        """The last step of a stream; see ``TritonBackend.end_stream``."""
        session = self.session
        if session.sequences is None:
            raise RuntimeError(f"model {session.model.name!r} has no sequences, so there is none to end")
        if inputs is None and not session.sequences.knows(stream_id):
            return None
        request = Request(zeros_for(session.model.inputs) if inputs is None else inputs, stream_id=stream_id)
        self.validate(request)
        deadline_ns = self.clock() + round(timeout_s * 1e9)
        with session.calls:
            return await self.step(request, self.batch_of_one(request), deadline_ns, end=True)

    async def answers(
        self, arrays: Mapping[str, Any], parameters: dict[str, Any], deadline_ns: int | None
    ) -> AsyncGenerator[Any, None]:
        """The answers to one request, as they come.

        Args:
            arrays: its inputs, as the model reads them.
            parameters: of the request.
            deadline_ns: of the last answer; ``None``: there is none, but each answer has ``timeout_s``.

        Raises:
            StreamInferError: the stream did not come to its end.
        """
        batched = self.has_batch_axis
        changes = self.session.changes
        parameters["triton_enable_empty_final_response"] = True
        timeout_s = None if deadline_ns is None else self.left(deadline_ns)
        silence_s = self._timeout_s if deadline_ns is None else None
        error: StreamInferError | None = None
        try:
            async with contextlib.aclosing(
                self.session.transport.stream(self.session.call(arrays, parameters), timeout_s)
            ) as answers:
                while True:
                    async with asyncio.timeout(silence_s):
                        answer = await anext(answers, _END)
                    if answer is _END:
                        break
                    if answer.final and not answer.outputs:
                        return
                    yield (await self.session.read(answer, 1, changes, batched=batched))[0]
                    if answer.final:
                        return
        except ServerError as refused:
            error = from_status(refused, f"{self.what}, a stream of answers")
        except TimeoutError as silent:
            error = DeadlineExceeded(f"{self.what}, a stream of answers: nothing came for {silence_s} s")
            error.__cause__ = silent
        raise error or BackendError(f"{self.what}: the stream of answers ended without a final one")

    def batch_of_one(self, request: Request) -> dict[str, Any]:
        """What a request that fits brings, by name, with a batch axis."""
        inputs = self.session.check.by_name(request.inputs)
        if inputs is None:  # a plain number for an input without axes
            inputs = {next(iter(self.session.check.whole.batch_axes)): request.inputs}
        return {name: np.asarray(value)[np.newaxis] for name, value in inputs.items()}

    def parameters(self, rows: Sequence[Request]) -> dict[str, int | bool | str]:
        """The most urgent row's priority, where the model has levels: ours is counted from the model's default."""
        model = self.session.model
        if not model.priority_levels:
            return {}
        urgent = min(row.priority for row in rows)
        return {"priority": min(max(model.default_priority + urgent, 1), model.priority_levels)} if urgent else {}

    def left(self, deadline_ns: int | None) -> float:
        """Seconds until a deadline.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if deadline_ns is None or deadline_ns == NEVER_NS:
            return self._timeout_s
        left_s = (deadline_ns - self.clock()) / 1e9
        if left_s <= 0:
            raise DeadlineExceeded(f"{self.what}: the deadline had passed {-left_s:.6f} s before it was asked")
        return left_s


def without_axis(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch of one brings, for a model without a batch axis; arrays, of scalars too."""
    return {name: array[0, ...] for name, array in arrays.items()}


def zeros_for(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """A request of zeros and empty text, with free sizes set to 1."""
    request: dict[str, Any] = {}
    for spec in specs:
        shape = [size if isinstance(size, int) else 1 for size in spec.row_shape]
        request[spec.name] = np.full(shape, b"", TEXT) if spec.dtype == TEXT else np.zeros(shape, spec.dtype)
    return request
