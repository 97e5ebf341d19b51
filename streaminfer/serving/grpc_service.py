"""`grpc_servicer`: stacks as models of the Open Inference Protocol over ``grpc.aio``.

The messages are ``tritonclient``'s. Inference requests are received as bytes, so that raw tensors are views of the
message, and responses are assembled in one copy (:mod:`streaminfer.backends.triton.transport.wire`). If the client
cancels or its deadline passes, gRPC cancels the handler, and with it the request.
"""

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from streaminfer._internal._protobuf_cy import split_fields
from streaminfer._internal.loading.extras import require
from streaminfer.backends.triton.dtypes import CONTENTS
from streaminfer.backends.triton.transport.wire import append_contents, parts_of_contents, split_contents, tag_of
from streaminfer.errors import InvalidInput
from streaminfer.protocols import adapt
from streaminfer.serving import description
from streaminfer.serving.deadlines import SETTING_HEADERS, TIME_LEFT, RequestSettings, read_settings
from streaminfer.serving.errors import RequestRejected, logged_failure
from streaminfer.serving.gathering import Gatherer
from streaminfer.serving.grpc_stream import stream_responses
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.requests._infer_head_cy import InferHead
from streaminfer.serving.requests._model_requests_cy import ModelCall, ModelRequests
from streaminfer.serving.requests.infer_request import HeadReader
from streaminfer.serving.requests.infer_response import VERSION, Outputs, keep_reply, select_outputs
from streaminfer.serving.requests.tensors import encode
from streaminfer.stack import Stack

if TYPE_CHECKING:
    from grpc import GenericRpcHandler
else:
    GenericRpcHandler = object  # servers only call its `service` method, and grpc is loaded when it is used

__all__ = ["GrpcService", "grpc_servicer"]

_SERVICE = "/inference.GRPCInferenceService/"
_INFER = _SERVICE + "ModelInfer"
_HEALTH = "/grpc.health.v1.Health/"
_HEALTHY, _UNHEALTHY, _UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
"""``HealthCheckResponse`` with the status ``SERVING``, ``NOT_SERVING`` or ``SERVICE_UNKNOWN``."""
_WATCH_INTERVAL_S = 1.0
"""Seconds between the looks of a watch: a stack may run in the event loop of another thread, so nothing wakes it."""
_SERVICE_NAME_TAG = 0x0A
"""Tag of ``HealthCheckRequest.service``."""
_MODEL_NAME_TAG = b"\x0a"
"""Tag of ``ModelInferRequest.model_name``."""
_WANTS_FINAL = "triton_enable_empty_final_response"
"""Parameter of a request with which a client asks for a mark on the last response."""
_SETTING_HEADERS = frozenset(SETTING_HEADERS)
_calls = itertools.count(1)
"""Numbers of `ModelStreamInfer` calls, unique in the process, because several servers can have the same stack."""
_Kind = tuple[str, str, tuple[int, ...]]
"""Name, datatype and shape of an output."""


def grpc_servicer(stacks: Mapping[str, Stack], *, limits: Limits | None = None) -> "GrpcService":
    """Return the service of the Open Inference Protocol for a server of ``grpc.aio``; needs the extra ``grpc``.

    ``server.add_generic_rpc_handlers((servicer,))`` adds it, with gRPC's health check. The caller starts and stops the
    stacks and the server. Call ``await server.stop(grace)`` before you stop the stacks, to complete requests in flight.

    Args:
        stacks: stacks by model name.
        limits: limits of one request; ``None``: the defaults. The server's own option
            ``grpc.max_receive_message_length``, 4 MiB by default, limits the whole message.

    Raises:
        TypeError, ValueError: an argument is wrong.
        MissingExtra: the extra ``grpc`` is not installed.
    """
    limits = checked_limits(limits)
    return GrpcService(description.served_models(stacks), limits)


class GrpcService(GenericRpcHandler):  # type: ignore[misc] # without stubs of grpc it is Any
    """Handlers of the calls; a server of ``grpc.aio`` looks them up here.

    Args:
        models: models by name.
        limits: limits of one request.
    """

    def __init__(self, models: Mapping[str, ModelRequests], limits: Limits) -> None:
        purpose = "grpc_servicer"
        self._grpc = require("grpc", extra="grpc", purpose=purpose)
        self._pb = require("tritonclient.grpc.service_pb2", extra="grpc", purpose=purpose)
        self._parse_dict = require("google.protobuf.json_format", extra="grpc", purpose=purpose).ParseDict
        self._unreadable = require("google.protobuf.message", extra="grpc", purpose=purpose).DecodeError
        self._models = models
        self._names = {name.encode(): model for name, model in models.items()}
        self._limits = limits
        self._gatherer = Gatherer()
        self._input_tag = tag_of(self._pb.ModelInferRequest, "raw_input_contents")
        self._id_tag = tag_of(self._pb.ModelInferRequest, "id")
        self._output_tag = tag_of(self._pb.ModelInferResponse, "raw_output_contents")
        self._response_tag = tag_of(self._pb.ModelStreamInferResponse, "infer_response")
        self._max_fields = 4 * limits.max_tensors + 256
        unary = self._grpc.unary_unary_rpc_method_handler
        self._handlers: dict[str, Any] = {
            _INFER: unary(self._infer),
            f"{_SERVICE}ModelStreamInfer": self._grpc.stream_stream_rpc_method_handler(self._stream),
            f"{_HEALTH}Check": unary(self._answering(self._health)),
            f"{_HEALTH}Watch": self._grpc.unary_stream_rpc_method_handler(self._watch_health),
        }
        for name, describe in (
            ("ServerLive", lambda _: {"live": True}),
            ("ServerReady", lambda _: {"ready": description.is_ready(models)}),
            ("ServerMetadata", lambda _: description.server()),
            ("ModelReady", lambda call: {"ready": self._model(call).stack.ready}),
            ("ModelMetadata", lambda call: description.metadata(self._model(call))),
            ("ModelConfig", lambda call: {"config": description.config(self._model(call), limits)}),
            ("ModelStatistics", self._statistics),
        ):
            self._handlers[_SERVICE + name] = self._describing(name, describe)

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; ``None`` for an unknown method."""
        method = handler_call_details.method
        if method == _INFER:
            self._gatherer.accept()
        return self._handlers.get(method)

    # -- description --------------------------------------------------------------------------------------------

    def _answering(self, answer: Callable[[Any], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return a handler that responds at once; an error becomes a status."""

        async def handle(message: Any, context: Any) -> Any:
            try:
                return answer(message)
            except Exception as error:  # noqa: BLE001 - each becomes a status
                await self._abort(context, error)

        return handle

    def _describing(self, name: str, make_fields: Callable[[Any], dict[str, Any]]) -> Any:
        """Return a handler that responds with a message made of a mapping."""
        service = self._pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        method = service.methods_by_name[name]
        request, response = (self._pb.__dict__[kind.name] for kind in (method.input_type, method.output_type))
        return self._grpc.unary_unary_rpc_method_handler(
            self._answering(lambda message: self._parse_dict(make_fields(message), response())),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    def _model(self, call: Any) -> ModelRequests:
        return description.find_model(self._models, call.name, call.version)

    def _statistics(self, call: Any) -> dict[str, Any]:
        return description.statistics([self._model(call)] if call.name else self._models.values())

    def _health(self, message: bytes) -> bytes:
        """Return the response to a health check.

        Raises:
            InvalidInput: the message cannot be read.
            RequestRejected: it names an unknown model.
        """
        try:
            _, names = split_contents(message, _SERVICE_NAME_TAG, max_fields=self._max_fields)
            name = str(names[-1], "utf-8") if names else ""
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        ready = (
            description.find_model(self._models, name, "").stack.ready if name else description.is_ready(self._models)
        )
        return _HEALTHY if ready else _UNHEALTHY

    async def _watch_health(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        """Yield the health and each change of it; gRPC cancels this when the client leaves or the server stops."""
        sent = b""
        while True:
            try:
                health = self._health(message)
            except RequestRejected:
                health = _UNKNOWN
            except Exception as error:  # noqa: BLE001 - each becomes a status
                await self._abort(context, error)
            if health != sent:
                yield health
                sent = health
            await asyncio.sleep(_WATCH_INTERVAL_S)

    # -- inference ----------------------------------------------------------------------------------------------

    async def _infer(self, message: bytes, context: Any) -> bytes:
        gathered = self._gatherer.arrive()
        try:
            model, head, rows = self._read(message)
            call = await self._call_model(model, head, rows, context, None, gathered)
            response = self._render(call, final=None)
        except Exception as error:  # noqa: BLE001 - each becomes a status; cancellations are not caught
            await self._abort(context, error)
        if call.time_left_s is not None:
            context.set_trailing_metadata(((TIME_LEFT, f"{call.time_left_s:.6f}"),))
        return response

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        stream_id = f"grpc-stream-{next(_calls)}"
        model_names: set[str] = set()
        infer = functools.partial(self._infer_streamed, context, stream_id, model_names)
        try:
            async with contextlib.aclosing(stream_responses(infer, messages)) as responses:
                async for response in responses:
                    yield response
        finally:
            for name in model_names:
                if (states := adapt(self._models[name].stack).capabilities().stream_states) is not None:
                    states.end_stream(stream_id)

    async def _infer_streamed(
        self, context: Any, stream_id: str, model_names: set[str], message: bytes
    ) -> AsyncGenerator[bytes, None]:
        """Yield the response to a request, or all responses of the model, and an empty last one if requested."""
        identity, final_response = "", b""
        try:
            model, head, rows = self._read(message)
            identity = head.id
            model_names.add(model.name)
            call = await self._call_model(model, head, rows, context, stream_id)
            wants_final = head.parameters.get(_WANTS_FINAL) is True
            if call.stream is None:
                yield self._streamed(self._render(call, final=True if wants_final else None))
            else:
                if wants_final:
                    final_response = self._streamed(self._render_head(call, (), final=True))
                async with contextlib.aclosing(call.stream) as responses:
                    async for arrays in responses:
                        yield self._streamed(self._render_arrays(call, arrays, final=False))
        except Exception as error:  # noqa: BLE001 - the stream continues
            yield self._error(identity or self._identity(message), error)
        if final_response:
            yield final_response

    def _streamed(self, response: bytes) -> bytes:
        return append_contents(b"", self._response_tag, [response])

    def _identity(self, message: bytes) -> str:
        """Return the id of a request that could not be read, so that the client can identify it."""
        try:
            fields = split_fields(message, self._id_tag, self._max_fields)[1]
            return message[slice(*fields[-1])].decode() if fields else ""
        except ValueError:
            return ""

    def _error(self, identity: str, error: Exception) -> bytes:
        response = self._pb.ModelStreamInferResponse(error_message=logged_failure(error).text)
        response.infer_response.id = identity
        message: bytes = response.SerializeToString()
        return message

    # -- messages -----------------------------------------------------------------------------------------------

    def _read(self, message: bytes) -> tuple[ModelRequests, InferHead, list[Any]]:
        """Return the model, the head of the request, and the inputs of each row.

        Raises:
            InvalidInput: the message cannot be read.
            RequestRejected: the request exceeds the limits, or names an unknown model.
        """
        if len(message) > self._limits.max_body_bytes:
            raise RequestRejected(413, f"message: expected at most {self._limits.max_body_bytes} bytes")
        try:
            pieces, spans = split_fields(message, self._input_tag, self._max_fields)
        except ValueError as error:
            raise _no_message(error) from None
        rest = b"".join([message[start:end] for start, end in pieces])
        if len(rest) > self._limits.max_head_bytes:
            raise RequestRejected(413, f"message: expected at most {self._limits.max_head_bytes} bytes beside raw")
        model = self._first_model(rest) or self._model_of(self._parse(rest))
        head = model.head(rest, len(rest), model.now_ns())
        if head is None:
            head = self._parse_head(model, rest, len(spans))
            model.store_head(rest, len(rest), head)
        return model, head, head.read(message, 0, spans)

    def _first_model(self, rest: bytes) -> ModelRequests | None:
        """Return the model if its name is the first field, as most clients write it."""
        if rest[:1] != _MODEL_NAME_TAG or len(rest) == 1:
            return None
        return self._names.get(rest[2 : 2 + rest[1]])

    def _model_of(self, message: Any) -> ModelRequests:
        return description.find_model(self._models, message.model_name, message.model_version)

    def _parse(self, rest: bytes) -> Any:
        try:
            return self._pb.ModelInferRequest.FromString(rest)
        except self._unreadable as error:
            raise _no_message(error) from None

    def _parse_head(self, model: ModelRequests, rest: bytes, raw: int) -> InferHead:
        limits, message = self._limits, self._parse(rest)
        if self._model_of(message) is not model:
            raise InvalidInput("model_name: expected once, got several")
        if max(len(message.inputs), len(message.outputs)) > limits.max_tensors:
            raise RequestRejected(413, f"message: expected at most {limits.max_tensors} inputs and outputs")
        if not message.inputs or (raw and raw != len(message.inputs)):
            raise InvalidInput(f"inputs: expected at least one, each with raw contents or none, got {raw} raw")
        reader = HeadReader(model.tensors, limits)
        for tensor in message.inputs:
            self._check_supported(tensor.parameters)
            data = None
            if not raw:
                if (field := CONTENTS.get(tensor.datatype)) is None:
                    raise InvalidInput(f"input {tensor.name!r}: expected raw contents for {tensor.datatype!r}")
                data = list(getattr(tensor.contents, field))
            reader.add(tensor.name, tensor.datatype, list(tensor.shape[: limits.max_rank + 1]), data=data)
        for tensor in message.outputs:
            self._check_supported(tensor.parameters)
        outputs = {tensor.name: True for tensor in message.outputs}
        parameters = {name: _value(value) for name, value in message.parameters.items()}
        return InferHead(message.id, reader, parameters, outputs, binary=True)

    @staticmethod
    def _check_supported(parameters: Any) -> None:
        if "shared_memory_region" in parameters or "classification" in parameters:
            raise RequestRejected(501, "parameters: shared memory and classification are not offered")

    async def _call_model(
        self,
        model: ModelRequests,
        head: InferHead,
        rows: list[Any],
        context: Any,
        stream_id: str | None,
        gathered: Awaitable[None] | None = None,
    ) -> ModelCall:
        """Call the stack and await its response; first await ``gathered``, if given, so that close requests arrive."""
        arrived_ns = model.now_ns()
        settings = _settings(context, head)
        left_s = context.time_remaining()
        if left_s is not None and (settings.timeout_s is None or left_s < settings.timeout_s):
            settings = settings._replace(timeout_s=max(left_s, 0.0))
        if settings.stream_id is None and stream_id is not None:
            settings = settings._replace(stream_id=stream_id)
        if gathered is not None:
            await gathered
        call = model.begin(head, rows, settings, arrived_ns)
        await call.complete(stream_id is not None)
        return call

    def _render(self, call: ModelCall, *, final: bool | None) -> bytes:
        if call.parts is not None:
            return b"".join(call.parts)
        return self._render_arrays(call, call.arrays or {}, final=final)

    def _render_arrays(self, call: ModelCall, arrays: Outputs, *, final: bool | None) -> bytes:
        head, announced = call.head, call.model.announced
        contents: list[bytes | memoryview] = []
        kinds: list[_Kind] = []
        for name, array in select_outputs(head, arrays).items():
            datatype, content = encode(name, array, announced.get(name))
            kinds.append((name, datatype, array.shape))
            contents.append(content)
        if head.rendered is None or head.rendered[0] != (kinds, final):
            head.rendered = ((kinds, final), self._render_head(call, kinds, final=final))
        parts = parts_of_contents(head.rendered[1], self._output_tag, contents)
        if _WANTS_FINAL not in head.parameters:  # else the response would differ between a stream and a single call
            keep_reply(head, call.row, kinds, [b"".join(parts[:2]), *parts[3::2]])
        return b"".join(parts)

    def _render_head(self, call: ModelCall, kinds: Sequence[_Kind], *, final: bool | None) -> bytes:
        response = self._pb.ModelInferResponse(model_name=call.model.name, model_version=VERSION, id=call.head.id)
        for name, datatype, shape in kinds:
            response.outputs.add(name=name, datatype=datatype, shape=shape)
        if final is not None:
            response.parameters["triton_final_response"].bool_param = final
        message: bytes = response.SerializeToString()
        return message

    async def _abort(self, context: Any, error: Exception) -> NoReturn:
        failure = logged_failure(error)
        metadata = () if failure.retry_after_s is None else (("retry-after", str(failure.retry_after_s)),)
        code = self._grpc.StatusCode[failure.grpc_status]
        await context.abort(code, failure.text, metadata)
        raise AssertionError("abort raises")  # pragma: no cover - for type checkers

    def __repr__(self) -> str:
        return f"GrpcService({', '.join(self._models)})"


def _value(parameter: Any) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    return None if field is None else getattr(parameter, field)


def _settings(context: Any, head: InferHead) -> RequestSettings:
    headers = {key: value for key, value in context.invocation_metadata() if key in _SETTING_HEADERS}
    return read_settings(headers, head.parameters) if headers else head.settings


def _no_message(error: Exception) -> InvalidInput:
    return InvalidInput(f"message: expected a ModelInferRequest: {error}")
