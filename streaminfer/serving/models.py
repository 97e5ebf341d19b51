"""A stack as a model of the protocol: its description, its counters, and requests of several rows."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from streaminfer._internal.validation import check_instance, expected
from streaminfer._request_cy import make_request
from streaminfer._runtime.rows import join_rows
from streaminfer._stack.many_calls import answer_all, default_concurrency
from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput
from streaminfer.protocols import Capabilities, ModelTensor, ModelTensors, adapt
from streaminfer.request import Request, Response, deadline_after, time_left_s
from streaminfer.serving._model_counters_cy import ModelCounters
from streaminfer.serving.deadlines import RequestSettings
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.infer_request import InferHead, InferRequest
from streaminfer.serving.infer_response import InferAnswer, Outputs, announced_datatypes
from streaminfer.serving.limits import Limits
from streaminfer.serving.tensors import datatype_of_spec
from streaminfer.stack import Stack

__all__ = ["EXTENSIONS", "VERSION", "ServedModel", "find_model", "served_models", "server_version"]

VERSION = "1"
"""The only version of each model."""
EXTENSIONS = ("binary_tensor_data", "generate", "model_configuration", "schedule_policy", "sequence", "statistics")

_READ_EVERY_NS = 1_000_000_000
_MAX_HEADS = 64
_MAX_HEAD_BYTES = 1024
"""Heads of requests that are kept: most clients send few kinds of requests, each many times."""
_NO_ARRAYS: Outputs = {}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


class ServedModel:
    """A stack under the name that clients use.

    Args:
        name: of the model.
        stack: what answers.
        limits: what one request may bring.

    Attributes:
        version: the only one.
        announced: the types of its outputs, as far as they are known.
    """

    version = VERSION

    def __init__(self, name: str, stack: Stack, limits: Limits) -> None:
        self.name = name
        self.stack = stack
        self.limits = limits
        self._offered = Capabilities()
        self._tensors: ModelTensors | None = None
        self._read_ns: int | None = None
        self._heads: dict[bytes, InferHead] = {}
        self._output_names: tuple[str, ...] = ()
        self.announced: Mapping[str, str | None] = {}
        self._counters = ModelCounters()

    # -- requests -----------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The present instant of the stack's clock."""
        return self.stack.clock()

    def head(self, text: bytes, parse: Callable[[ModelTensors | None], InferHead], now_ns: int) -> InferHead:
        """Return what the head of a request says; parsed once for all requests that share it.

        Args:
            text: the head; empty: it is not shared.
            parse: returns what it says, for a model with these inputs and outputs.
            now_ns: the present.

        Raises:
            StreamInferError: it is wrong.
        """
        self._renew(now_ns)
        found = self._heads.get(text) if text else None
        if found is None:
            found = parse(self._tensors)
            if found.is_reusable and 0 < len(text) <= _MAX_HEAD_BYTES:
                if len(self._heads) == _MAX_HEADS:
                    self._heads.clear()
                self._heads[text] = found
        return found

    async def infer(
        self, call: InferRequest, settings: RequestSettings, arrived_ns: int, *, takes_many: bool = False
    ) -> InferAnswer:
        """Answer all rows of a request, or none.

        Args:
            call: the request.
            settings: what it says about itself.
            arrived_ns: instant at which it came.
            takes_many: the client takes any number of answers.

        Raises:
            StreamInferError: the first row that could not be answered.
        """
        head, offered = call.head, self._offered
        slo_ns = None if offered.slo is None else offered.slo.slo_ns
        deadline_ns = None if slo_ns is None else arrived_ns + slo_ns
        if settings.timeout_s is not None:
            own_ns = deadline_after(arrived_ns, settings.timeout_s)
            deadline_ns = own_ns if deadline_ns is None else min(deadline_ns, own_ns)
        states = None if settings.stream_id is None else offered.stream_states
        if states is not None and head.rows != 1:
            raise InvalidInput(f"inputs: expected one row in each request of a sequence, got {head.rows}")
        rows = (call.row,) if call.row is not None else [_row(call, number) for number in range(head.rows)]
        priority, stream_id, tenant = settings.priority, settings.stream_id, settings.tenant  # checked when read
        requests = [make_request(row, deadline_ns, priority, stream_id, tenant, None, (), None, True) for row in rows]
        try:
            if states is not None and settings.starts_stream:
                states.reset_stream(settings.stream_id)
            if head.rows == 1:
                responses = [await self.stack.call(requests[0])]
            else:
                responses = await self._answer_rows(requests, arrived_ns)
            outputs, parts = responses[0].outputs, None
            if head.row_reply is not None and (parts := head.row_reply.render(outputs)) is not None:
                arrays: Outputs = _NO_ARRAYS
            elif type(outputs) is not np.ndarray and isinstance(outputs, AsyncIterator):
                await self._check_streamed(responses, takes_many=takes_many)
                stream = self._streamed(responses[0], deadline_ns, arrived_ns)
                return InferAnswer({}, time_left_s(deadline_ns, self.now_ns()), stream)
            else:
                arrays = self._joined([response.outputs for response in responses])
        except BaseException:
            self._counters.fail(self.now_ns() - arrived_ns)
            raise
        finally:
            if states is not None and settings.ends_stream:
                states.end_stream(settings.stream_id)
        now_ns = self.now_ns()
        self._counters.succeed(responses, arrived_ns, now_ns)
        row = outputs if head.rows == 1 else None
        return InferAnswer(arrays, time_left_s(deadline_ns, now_ns), None, row, parts)

    async def _answer_rows(self, requests: list[Request], now_ns: int) -> list[Response]:
        """Answer several rows: once one of them is accepted, the others wait for their places in the queue."""
        first: list[Response] = []
        if not self.stack.admission(requests[0], now_ns).ok:
            first.append(await self.stack.call(requests[0]))  # raises the reason
        left = requests[len(first) :]
        most = min(len(left), default_concurrency(self._offered.full_load))
        return first + await answer_all(left, self.stack._places.call, most, return_exceptions=False)

    async def _check_streamed(self, responses: list[Response], *, takes_many: bool) -> None:
        if takes_many and len(responses) == 1:
            return
        for response in responses:
            await _close(response)
        if takes_many:
            raise InvalidInput(f"inputs: expected one row for a model with many answers, got {len(responses)}")
        raise RequestRejected(
            501, f"model {self.name!r} has many answers to a request: expected generate_stream or ModelStreamInfer"
        )

    async def _streamed(
        self, response: Response, deadline_ns: int | None, arrived_ns: int
    ) -> AsyncGenerator[dict[str, npt.NDArray[Any]], None]:
        """The answers of a model that has many to one request, until its deadline."""
        answers: AsyncIterator[Any] = response.outputs
        try:
            while True:
                limit = asyncio.timeout(time_left_s(deadline_ns, self.now_ns()))
                try:
                    async with limit:
                        outputs = await anext(answers)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    if limit.expired():
                        raise DeadlineExceeded("the deadline passed between two answers") from None
                    raise
                yield self._joined([outputs])
        except BaseException:
            self._counters.fail(self.now_ns() - arrived_ns)
            raise
        else:
            self._counters.succeed([response], arrived_ns, self.now_ns())
        finally:
            await _close(response)

    def _renew(self, now_ns: int) -> None:
        """Read what the stack offers, at most once a second while it runs."""
        if self._read_ns is not None and now_ns - self._read_ns < _READ_EVERY_NS:
            return
        self._offered = adapt(self.stack).capabilities()
        if (tensors := self.tensors()) != self._tensors:
            self._heads.clear()
        self._tensors = tensors
        self.announced = announced_datatypes(tensors)
        self._output_names = () if tensors is None else tuple(spec.name for spec in tensors.outputs)
        self._read_ns = now_ns if self.stack.ready else None

    def _joined(self, outputs: list[Any]) -> dict[str, npt.NDArray[Any]]:
        """The outputs of all rows by name, with the rows on the first axis."""
        rows = [_named(one, self._output_names) for one in outputs]
        if len(rows) == 1:
            return {name: array[np.newaxis] for name, array in rows[0].items()}
        joined: dict[str, npt.NDArray[Any]] = join_rows(rows)
        return joined

    # -- description --------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether it accepts requests."""
        return self.stack.ready

    def tensors(self) -> ModelTensors | None:
        """The inputs and outputs of the model; ``None``: not known."""
        describe = adapt(self.stack).capabilities().model_tensors
        return None if describe is None else describe()

    def metadata(self) -> dict[str, Any]:
        """What the protocol says of a model; inputs and outputs that are not known are empty."""
        model = self.tensors() or ModelTensors(())
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "streaminfer",
            "inputs": [_described(spec) for spec in model.inputs if datatype_of_spec(spec)],
            "outputs": [_described(spec) for spec in model.outputs if datatype_of_spec(spec)],
        }

    def config(self) -> dict[str, Any]:
        """The model's configuration in Triton's words; the batch axis is not part of the shapes."""
        model, offered = self.tensors() or ModelTensors(()), adapt(self.stack).capabilities()
        config: dict[str, Any] = {
            "name": self.name,
            "platform": "streaminfer",
            "backend": "streaminfer",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.limits.max_rows,
            "input": [
                {**_configured(spec), "optional": spec.is_optional} for spec in model.inputs if datatype_of_spec(spec)
            ],
            "output": [_configured(spec) for spec in model.outputs if datatype_of_spec(spec)],
            "model_transaction_policy": {"decoupled": offered.many_answers},
        }
        if offered.stream_states is not None:
            config["sequence_batching"] = {
                "control_input": [
                    {
                        "name": "sequence_id",
                        "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}],
                    }
                ]
            }
        return config

    def statistics(self) -> dict[str, Any]:
        """Counts and durations of the requests, in Triton's words."""
        return {"name": self.name, "version": VERSION, **self._counters.statistics()}

    def __repr__(self) -> str:
        return f"ServedModel({self.name!r}, {self.stack!r})"


def served_models(stacks: Mapping[str, Stack], limits: Limits) -> dict[str, ServedModel]:
    """Return the models of some stacks.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    check_instance("stacks", stacks, lambda it: isinstance(it, Mapping), "a mapping of model name to Stack")
    if not stacks:
        raise ValueError(expected("stacks", "at least one Stack", stacks))
    name: Any  # checked, whatever type checkers promise
    for name, stack in stacks.items():
        check_instance(f"stacks[{name!r}]", stack, lambda it: isinstance(it, Stack), "a Stack")
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(expected("stacks", "names without '/'", name))
    return {name: ServedModel(name, stack, limits) for name, stack in stacks.items()}


def find_model(models: Mapping[str, ServedModel], name: str, wanted: str) -> ServedModel:
    """Return a model by name.

    Raises:
        RequestRejected: there is none, or not in that version.
    """
    model = models.get(name)
    if model is None or wanted not in {"", VERSION}:
        raise RequestRejected(404, f"model {name!r}{f' version {wanted!r}' if wanted else ''} is not found")
    return model


def server_version() -> str:
    """Return the version of this package."""
    return version("streaminfer")


async def _close(response: Response) -> None:
    if isinstance(response.outputs, AsyncGenerator):
        await response.outputs.aclose()


def _row(call: InferRequest, number: int) -> Any:
    """The inputs of one row."""
    if call.head.takes_one:
        (array,) = call.arrays.values()
        return array[number, ...]  # an array even without further axes
    return {name: array[number, ...] for name, array in call.arrays.items()}


def _named(outputs: Any, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The outputs of one row by name, as arrays."""
    if isinstance(outputs, Mapping):
        named = dict(outputs)
    elif isinstance(outputs, tuple):
        found = names if len(names) == len(outputs) else [f"output_{number}" for number in range(len(outputs))]
        named = dict(zip(found, outputs, strict=True))
    else:
        named = {names[0] if len(names) == 1 else "output": outputs}
    try:
        return {str(name): _as_array(value) for name, value in named.items()}
    except ValueError as error:
        raise BackendError(f"the outputs are no tensors: {error}") from error


def _as_array(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    # texts of different lengths would be of different types
    return array.astype(object) if array.dtype.kind in "SU" else array


def _described(spec: ModelTensor) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of_spec(spec), "shape": [-1, *_sizes(spec)]}


def _configured(spec: ModelTensor) -> dict[str, Any]:
    datatype = datatype_of_spec(spec) or ""
    return {"name": spec.name, "data_type": _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"), "dims": _sizes(spec)}


def _sizes(spec: ModelTensor) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.row_shape]
