"""`grpc_servicer`: stacks as models of the Open Inference Protocol over ``grpc.aio``.

The messages are ``tritonclient``'s. Requests for inference are taken as bytes, so that raw tensors are views of the
message, and responses are put together in one copy (:mod:`streaminfer.backends.triton.transport.wire`). gRPC cancels
the handler when the client cancels or its deadline passes, and with it the request.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

from streaminfer._internal.extras import require
from streaminfer.backends.triton.dtypes import CONTENTS
from streaminfer.backends.triton.transport.wire import append_contents, split_contents, tag_of
from streaminfer.errors import InvalidInput
from streaminfer.protocols import ModelTensors, adapt
from streaminfer.serving.deadlines import TIME_LEFT, read_settings
from streaminfer.serving.errors import RequestRejected, describe_failure
from streaminfer.serving.infer_request import InferRequest, InputReader
from streaminfer.serving.infer_response import InferAnswer, announced_datatypes, select_outputs
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.models import EXTENSIONS, VERSION, ServedModel, find_model, served_models, server_version
from streaminfer.serving.tensors import encode
from streaminfer.stack import Stack

__all__ = ["GrpcService", "grpc_servicer"]

_LOG = logging.getLogger("streaminfer")
_SERVICE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/Check"
_HEALTHY, _UNHEALTHY = b"\x08\x01", b"\x08\x02"
"""``HealthCheckResponse`` with the status ``SERVING`` or ``NOT_SERVING``."""
_SERVICE_NAME_TAG = 0x0A
"""Of ``HealthCheckRequest.service``."""
_MAX_STREAMED = 64
"""Requests of one stream in flight; a client that sends faster is held up by gRPC's flow control."""


def grpc_servicer(stacks: Mapping[str, Stack], *, limits: Limits | None = None) -> "GrpcService":
    """Return the service of the Open Inference Protocol for a server of ``grpc.aio``; needs the extra ``grpc``.

    ``server.add_generic_rpc_handlers((servicer,))`` adds it, with gRPC's health check. The caller starts and stops the
    stacks and the server; ``await server.stop(grace)`` before the stacks stop completes what is in flight.

    Args:
        stacks: by the names of their models.
        limits: how much one request may bring; ``None``: the defaults. The server's own option
            ``grpc.max_receive_message_length``, 4 MiB by default, limits the whole message.

    Raises:
        TypeError, ValueError: an argument is wrong.
        MissingExtra: the extra ``grpc`` is not installed.
    """
    limits = checked_limits(limits)
    return GrpcService(served_models(stacks, limits), limits)


class GrpcService:
    """Handlers of the calls, as a server of ``grpc.aio`` looks them up.

    Args:
        models: by name.
        limits: how much one request may bring.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        purpose = "grpc_servicer"
        self._grpc = require("grpc", extra="grpc", purpose=purpose)
        self._pb = require("tritonclient.grpc.service_pb2", extra="grpc", purpose=purpose)
        self._fill = require("google.protobuf.json_format", extra="grpc", purpose=purpose).ParseDict
        self._unreadable = require("google.protobuf.message", extra="grpc", purpose=purpose).DecodeError
        self._models = models
        self._limits = limits
        self._streams = itertools.count(1)
        self._input_tag = tag_of(self._pb.ModelInferRequest, "raw_input_contents")
        self._output_tag = tag_of(self._pb.ModelInferResponse, "raw_output_contents")
        self._response_tag = tag_of(self._pb.ModelStreamInferResponse, "infer_response")
        self._max_fields = 4 * limits.max_tensors + 256
        unary = self._grpc.unary_unary_rpc_method_handler
        self._handlers: dict[str, Any] = {
            f"{_SERVICE}ModelInfer": unary(self._infer),
            f"{_SERVICE}ModelStreamInfer": self._grpc.stream_stream_rpc_method_handler(self._stream),
            _HEALTH: unary(self._check_health),
        }
        for name, answer in (
            ("ServerLive", lambda _: {"live": True}),
            ("ServerReady", lambda _: {"ready": self._ready}),
            ("ServerMetadata", self._server_metadata),
            ("ModelReady", lambda call: {"ready": self._model(call).ready}),
            ("ModelMetadata", lambda call: self._model(call).metadata()),
            ("ModelConfig", lambda call: {"config": self._model(call).config()}),
            ("ModelStatistics", self._statistics),
        ):
            self._handlers[_SERVICE + name] = self._describing(name, answer)

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; ``None``: there is none."""
        return self._handlers.get(handler_call_details.method)

    # -- description --------------------------------------------------------------------------------------------

    def _describing(self, name: str, answer: Callable[[Any], dict[str, Any]]) -> Any:
        """A handler that answers with a message made of a mapping."""
        service = self._pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        method = service.methods_by_name[name]
        request, response = (self._pb.__dict__[kind.name] for kind in (method.input_type, method.output_type))

        async def describe(message: Any, context: Any) -> Any:
            try:
                return self._fill(answer(message), response())
            except Exception as error:  # noqa: BLE001 - each becomes a status
                await self._abort(context, error)

        return self._grpc.unary_unary_rpc_method_handler(
            describe, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )

    @property
    def _ready(self) -> bool:
        return all(model.ready for model in self._models.values())

    def _model(self, call: Any) -> ServedModel:
        return find_model(self._models, call.name, call.version)

    def _server_metadata(self, _: Any) -> dict[str, Any]:
        return {"name": "streaminfer", "version": server_version(), "extensions": list(EXTENSIONS)}

    def _statistics(self, call: Any) -> dict[str, Any]:
        models = [self._model(call)] if call.name else self._models.values()
        return {"model_stats": [model.statistics() for model in models]}

    async def _check_health(self, message: bytes, context: Any) -> bytes:
        try:
            _, names = split_contents(message, _SERVICE_NAME_TAG, max_fields=self._max_fields)
            name = str(names[-1], "utf-8") if names else ""
            ready = find_model(self._models, name, "").ready if name else self._ready
        except Exception as error:  # noqa: BLE001 - each becomes a status
            await self._abort(context, InvalidInput(str(error)) if isinstance(error, ValueError) else error)
        return _HEALTHY if ready else _UNHEALTHY

    # -- inference ----------------------------------------------------------------------------------------------

    async def _infer(self, message: bytes, context: Any) -> bytes:
        try:
            head, contents = self._read(message)
            response, left_s = await self._answer(head, contents, context, None)
        except Exception as error:  # noqa: BLE001 - each becomes a status; a cancellation passes
            await self._abort(context, error)
        if left_s is not None:
            context.set_trailing_metadata(((TIME_LEFT, f"{left_s:.6f}"),))
        return response

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers each request of a stream, in their order; up to `_MAX_STREAMED` are in flight."""
        stream_id = f"grpc-stream-{next(self._streams)}"
        places = asyncio.Semaphore(_MAX_STREAMED)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        running: set[asyncio.Task[bytes]] = set()
        used: set[str] = set()

        async def read() -> None:
            try:
                async for message in messages:
                    await places.acquire()
                    task = asyncio.ensure_future(self._answer_streamed(message, context, stream_id, used))
                    running.add(task)
                    answers.put_nowait(task)
            finally:
                answers.put_nowait(None)

        reading = asyncio.ensure_future(read())
        try:
            while (task := await answers.get()) is not None:
                response = await task
                running.discard(task)
                places.release()
                yield response
            await reading  # raises what ended it
        finally:
            for one in (reading, *running):
                one.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)
            for name in used:
                if (states := adapt(self._models[name].stack).capabilities().stream_states) is not None:
                    states.end_stream(stream_id)

    async def _answer_streamed(self, message: bytes, context: Any, stream_id: str, used: set[str]) -> bytes:
        response = self._pb.ModelStreamInferResponse()
        try:
            head, contents = self._read(message)
            response.infer_response.id = head.id
            if head.model_name in self._models:
                used.add(head.model_name)
            answer, _ = await self._answer(head, contents, context, stream_id)
        except Exception as error:  # noqa: BLE001 - the stream goes on
            response.error_message = self._describe(error).text
            failed: bytes = response.SerializeToString()
            return failed
        return append_contents(b"", self._response_tag, [answer])

    def _read(self, message: bytes) -> tuple[Any, list[memoryview]]:
        """The message without its raw tensors, and these.

        Raises:
            InvalidInput: it is no such message.
            RequestRejected: it is beyond the limits.
        """
        if len(message) > self._limits.max_body_bytes:
            raise RequestRejected(413, f"message: expected at most {self._limits.max_body_bytes} bytes")
        try:
            rest, contents = split_contents(message, self._input_tag, max_fields=self._max_fields)
            if len(rest) > self._limits.max_head_bytes:
                raise RequestRejected(413, f"message: expected at most {self._limits.max_head_bytes} bytes beside raw")
            return self._pb.ModelInferRequest.FromString(rest), contents
        except (ValueError, self._unreadable) as error:
            raise InvalidInput(f"message: expected a ModelInferRequest: {error}") from None

    async def _answer(
        self, head: Any, contents: list[memoryview], context: Any, stream_id: str | None
    ) -> tuple[bytes, float | None]:
        arrived_ns = (model := find_model(self._models, head.model_name, head.model_version)).now_ns()
        tensors = model.current_tensors(arrived_ns)
        call = self._parse(head, contents, tensors)
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        settings = read_settings(metadata, call.parameters)
        left_s = context.time_remaining()
        if left_s is not None and (settings.timeout_s is None or left_s < settings.timeout_s):
            settings = settings._replace(timeout_s=max(left_s, 0.0))
        if settings.stream_id is None and stream_id is not None:
            settings = settings._replace(stream_id=stream_id)
        answer = await model.infer(call, settings, arrived_ns)
        return self._render(model, call, answer, tensors), answer.time_left_s

    def _parse(self, head: Any, contents: list[memoryview], tensors: ModelTensors | None) -> InferRequest:
        limits = self._limits
        if max(len(head.inputs), len(head.outputs)) > limits.max_tensors:
            raise RequestRejected(413, f"message: expected at most {limits.max_tensors} inputs and outputs")
        if not head.inputs or (contents and len(contents) != len(head.inputs)):
            raise InvalidInput(
                f"inputs: expected at least one, each with raw contents or none, got {len(contents)} raw"
            )
        reader = InputReader(tensors, limits)
        for number, described in enumerate(head.inputs):
            self._check_offered(described.parameters)
            shape = list(described.shape[: limits.max_rank + 1])
            if contents:
                reader.add(described.name, described.datatype, shape, content=contents[number])
            elif (field := CONTENTS.get(described.datatype)) is None:
                raise InvalidInput(f"input {described.name!r}: expected raw contents for {described.datatype!r}")
            else:
                data = list(getattr(described.contents, field))
                reader.add(described.name, described.datatype, shape, data=data)
        for described in head.outputs:
            self._check_offered(described.parameters)
        outputs = {described.name: True for described in head.outputs}
        parameters = {name: _value(value) for name, value in head.parameters.items()}
        return InferRequest(head.id, reader.arrays, reader.rows, parameters, outputs or None, binary=True)

    @staticmethod
    def _check_offered(parameters: Any) -> None:
        if "shared_memory_region" in parameters or "classification" in parameters:
            raise RequestRejected(501, "parameters: shared memory and classification are not offered")

    def _render(
        self, model: ServedModel, call: InferRequest, answer: InferAnswer, tensors: ModelTensors | None
    ) -> bytes:
        head = self._pb.ModelInferResponse(model_name=model.name, model_version=VERSION, id=call.id)
        announced = announced_datatypes(tensors)
        contents: list[bytes | memoryview] = []
        for name, array in select_outputs(call, answer).items():
            datatype, content = encode(name, array, announced.get(name))
            head.outputs.add(name=name, datatype=datatype, shape=array.shape)
            contents.append(content)
        return append_contents(head.SerializeToString(), self._output_tag, contents)

    def _describe(self, error: Exception) -> Any:
        failure = describe_failure(error)
        if failure.is_internal:
            _LOG.error("a request failed", exc_info=error)
        return failure

    async def _abort(self, context: Any, error: Exception) -> NoReturn:
        failure = self._describe(error)
        metadata = () if failure.retry_after_s is None else (("retry-after", str(failure.retry_after_s)),)
        code = self._grpc.StatusCode[failure.grpc_status]
        await context.abort(code, failure.text, metadata)
        raise AssertionError("abort raises")  # pragma: no cover - for type checkers

    def __repr__(self) -> str:
        return f"GrpcService({', '.join(self._models)})"


def _value(parameter: Any) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    return None if field is None else getattr(parameter, field)
