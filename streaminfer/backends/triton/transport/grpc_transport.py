"""Transport over gRPC, on asyncio.

Calls use ``tritonclient``'s generated messages and methods. Inference, once per batch, uses a method that takes and
returns bytes (:mod:`~streaminfer.backends.triton.transport.wire`).

**Reconnecting.** gRPC restores a broken connection, with waits of about 0.1 s to at most 0.25 s. Its default waits grow
to two minutes, during which every call fails although the server is back. A connection can also become *silent* without
breaking: a machine vanished, or a router forgot the connection. TCP notices that after many minutes. gRPC's pings
cannot be used to find out, because a server with default options ends connections that ping more than once in five
minutes. The transport therefore watches its calls. If a call runs out of time or is cancelled, and nothing has come for
two seconds since the first call without a response, later calls get a new connection. Running calls stay on the old
connection, which is closed after the last of them.

**Cancellation.** gRPC raises ``CancelledError`` if the caller's task cancelled the call, and also if
:meth:`GrpcTransport.close` ended it. Only the first is raised in the task.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, NoReturn

from streaminfer._internal.loading.extras import require
from streaminfer.backends.triton.dtypes import CONTENTS, raw
from streaminfer.backends.triton.endpoint import Endpoint
from streaminfer.backends.triton.errors import ServerError, of_text, retry_after
from streaminfer.backends.triton.messages import InferRequest, InferResponse, SharedMemoryRef, Tensor
from streaminfer.backends.triton.transport.headers import Headers, Sent, raise_scrubbed, scrub
from streaminfer.backends.triton.transport.wire import append_contents, split_contents, tag_of
from streaminfer.errors import BackendError, Closed

__all__ = ["GrpcTransport"]

_SERVICE = "/inference.GRPCInferenceService/"
_SILENT_NS = 2_000_000_000
_MAX_HEADS = 256
_PARAMETERS = {bool: "bool_param", int: "int64_param", str: "string_param"}
_NO_RESPONSE = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED")


def _options(address: Endpoint, keepalive_s: float | None) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 208),  # gRPC varies each wait by a fifth, so at most 250 ms
        ("grpc.min_reconnect_backoff_ms", 2000),  # the time limit of one attempt, its TLS handshake included
        ("grpc.use_local_subchannel_pool", 1),  # otherwise a new channel would reuse the silent connection
        ("grpc.service_config_disable_resolution", 1),
    ]
    if address.tls is None:
        options.append(("grpc.enable_http_proxy", 0))  # unencrypted calls use no proxy
    elif address.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", address.tls.server_name))
    if keepalive_s is not None:
        options += [
            ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", max(round(keepalive_s * 1000 / 2), 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


class _Link:
    """One channel, and its running calls."""

    def __init__(self, channel: Any, stub: Any) -> None:
        self.channel = channel
        self.stub = stub
        stub.ModelInfer = channel.unary_unary(f"{_SERVICE}ModelInfer")  # of bytes
        # the request is sent with the headers: a later message would fail if the server has ended the call by then
        self.stream = channel.unary_stream(f"{_SERVICE}ModelStreamInfer")
        self.calls: set[Any] = set()


class GrpcTransport:
    """Transport over gRPC, see :mod:`streaminfer.backends.triton.transport`; belongs to its event loop.

    Args:
        address: the address of the server.
        headers: headers of every call.
        keepalive_s: seconds between pings of a quiet connection; ``None``: no pings.
        clock: monotonic nanoseconds.

    Raises:
        MissingExtra: ``tritonclient`` or ``grpcio`` is not installed.
        OSError: a file of ``tls`` cannot be read.
        ValueError: a file of ``tls`` is invalid.
    """

    def __init__(
        self, address: Endpoint, headers: Headers, keepalive_s: float | None, clock: Callable[[], int]
    ) -> None:
        load = functools.partial(require, extra="triton", purpose="TritonBackend")
        self._messages = load("tritonclient.grpc.service_pb2")
        self._services = load("tritonclient.grpc.service_pb2_grpc")
        self._to_dict = load("google.protobuf.json_format").MessageToDict
        self._grpc = load("grpc.aio")
        self._target = address.target
        self._options = _options(address, keepalive_s)
        self._credentials: Any = None
        if address.tls is not None:
            address.tls.context()  # raises for an invalid file; gRPC would only fail to connect
            ca, key, certificate = map(address.tls.read, ("ca", "key", "certificate"))
            self._credentials = load("grpc").ssl_channel_credentials(ca, key, certificate)
        self.binary = True
        self._headers = headers
        self._clock = clock
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._heads: dict[Any, bytes] = {}
        self._input_tag = tag_of(self._messages.ModelInferRequest, "raw_input_contents")
        self._output_tag = tag_of(self._messages.ModelInferResponse, "raw_output_contents")
        self._response_tag = tag_of(self._messages.ModelStreamInferResponse, "infer_response")
        # start of the first call since the last response; ``None``: no such call
        self._unanswered_ns: int | None = None
        self._link = self._connect()
        self._silent: set[_Link] = set()  # replaced links with calls that still run

    async def server(self, timeout_s: float) -> Mapping[str, Any]:
        """Return name, version and extensions of the server."""
        return await self._control("ServerMetadata", timeout_s)

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        """Return whether the model is loaded."""
        return bool((await self._control("ModelReady", timeout_s, name=model, version=version)).get("ready"))

    async def metadata(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's inputs, outputs and versions."""
        return await self._control("ModelMetadata", timeout_s, name=model, version=version)

    async def config(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's configuration."""
        response = await self._control("ModelConfig", timeout_s, name=model, version=version)
        config: Mapping[str, Any] = response.get("config", {})
        return config

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the index of the server's model repository."""
        return list((await self._control("RepositoryIndex", timeout_s)).get("models", ()))

    async def load(self, model: str, timeout_s: float) -> None:
        """Make the server load a model; returns when it is loaded."""
        await self._control("RepositoryModelLoad", timeout_s, model_name=model)

    async def unload(self, model: str, timeout_s: float) -> None:
        """Make the server unload a model and the models that only it needs; may return before they are unloaded."""
        parameters = {"unload_dependents": self._messages.ModelRepositoryParameter(bool_param=True)}
        await self._control("RepositoryModelUnload", timeout_s, model_name=model, parameters=parameters)

    async def statistics(self, model: str, version: str, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the counters of the model, by version."""
        response = await self._control("ModelStatistics", timeout_s, name=model, version=version)
        return list(response.get("model_stats", ()))

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """Make the server map shared memory."""
        await self._control("SystemSharedMemoryRegister", timeout_s, name=name, key=f"/{key}", byte_size=byte_size)

    async def unregister(self, name: str, timeout_s: float) -> None:
        """Make the server forget shared memory."""
        await self._control("SystemSharedMemoryUnregister", timeout_s, name=name)

    async def registered(self, timeout_s: float) -> Sequence[str]:
        """Return the names of the shared memory that the server knows."""
        return list((await self._control("SystemSharedMemoryStatus", timeout_s)).get("regions", {}))

    async def infer(self, call: InferRequest, timeout_s: float) -> InferResponse:
        """Send a request and return its response."""
        return self._read(await self._call("ModelInfer", self._encode(call), timeout_s))

    async def stream(self, call: InferRequest, timeout_s: float | None) -> AsyncGenerator[InferResponse, None]:
        """Yield each response as it comes, the final one included."""
        message = self._encode(call)
        link = self._open_link()
        # errors come as text without a status; the header that requests one, triton_grpc_error, makes Triton 2.51 crash
        # if the model continues after its error
        headers = self._headers.now()
        rpc = link.stream(message, timeout=timeout_s, metadata=headers)
        link.calls.add(rpc)
        try:
            while True:
                self._expect_response()
                part = await rpc.read()
                self._unanswered_ns = None
                if part is self._grpc.EOF:
                    break
                response = self._read_part(part, headers)
                yield response
                if response.final:
                    return
        except asyncio.CancelledError:
            self._handle_cancellation()
            raise
        except self._grpc.AioRpcError as error:
            self._raise_failure(error, headers)
        finally:
            rpc.cancel()
            self._forget(link, rpc)

    async def close(self) -> None:
        """End all running calls, and the connections. May be repeated."""
        self._closed = True
        links = [self._link, *self._silent]
        self._silent.clear()
        await asyncio.gather(*(link.channel.close() for link in links))
        while self._closing:
            await asyncio.wait(self._closing)

    # -- calls --------------------------------------------------------------------------------------------------

    async def _control(self, method: str, timeout_s: float, **fields: Any) -> Mapping[str, Any]:
        """Send a request with these fields and return its response."""
        response = await self._call(method, getattr(self._messages, f"{method}Request")(**fields), timeout_s)
        described: Mapping[str, Any] = self._to_dict(response, preserving_proto_field_name=True)
        return described

    async def _call(self, method: str, message: Any, timeout_s: float) -> Any:
        link, headers = self._open_link(), self._headers.now()
        rpc = getattr(link.stub, method)(message, timeout=timeout_s, metadata=headers)
        link.calls.add(rpc)
        self._expect_response()
        try:
            response = await rpc
        except asyncio.CancelledError:
            self._handle_cancellation()
            raise
        except self._grpc.AioRpcError as error:
            self._raise_failure(error, headers)
        finally:
            self._forget(link, rpc)
        self._unanswered_ns = None
        return response

    def _expect_response(self) -> None:
        if self._unanswered_ns is None:
            self._unanswered_ns = self._clock()

    def _raise_failure(self, error: Any, headers: Sent) -> NoReturn:
        status, text = error.code().name, str(error.details() or "")
        if status not in _NO_RESPONSE:
            self._unanswered_ns = None
        elif status == "DEADLINE_EXCEEDED":
            self._replace_if_silent()
        raise_scrubbed(headers, status, text, error, _retry_after(error.trailing_metadata()))

    def _handle_cancellation(self) -> None:
        task = asyncio.current_task()
        if self._closed and not (task is not None and task.cancelling()):
            self._raise_closed()
        self._replace_if_silent()  # a batcher cancels at the deadline, before gRPC reports that it has passed

    def _raise_closed(self) -> NoReturn:
        raise Closed("the connection to the server was closed")

    # -- connections --------------------------------------------------------------------------------------------

    def _open_link(self) -> _Link:
        if self._closed:
            self._raise_closed()
        return self._link

    def _connect(self) -> _Link:
        if self._credentials is None:
            channel = self._grpc.insecure_channel(self._target, options=self._options)
        else:
            channel = self._grpc.secure_channel(self._target, self._credentials, options=self._options)
        return _Link(channel, self._services.GRPCInferenceServiceStub(channel))

    def _replace_if_silent(self) -> None:
        now_ns = self._clock()
        since_ns = self._unanswered_ns
        if self._closed or since_ns is None or now_ns - since_ns < _SILENT_NS:
            return
        self._unanswered_ns = None  # the new connection gets its full time too
        silent, self._link = self._link, self._connect()
        self._silent.add(silent)
        self._close_unused(silent)

    def _forget(self, link: _Link, rpc: Any) -> None:
        link.calls.discard(rpc)
        if link in self._silent:
            self._close_unused(link)

    def _close_unused(self, link: _Link) -> None:
        if not link.calls:
            self._silent.discard(link)
            task = asyncio.get_running_loop().create_task(link.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # -- messages -----------------------------------------------------------------------------------------------

    def _encode(self, call: InferRequest) -> bytes:
        contents = [raw(tensor.content) for tensor in call.inputs if not isinstance(tensor.content, SharedMemoryRef)]
        if call.parameters or call.outputs or len(contents) < len(call.inputs):
            return append_contents(self._head(call), self._input_tag, contents)
        key = (call.model, call.version, *(tensor[:3] for tensor in call.inputs))
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            head = self._heads[key] = self._head(call)
        return append_contents(head, self._input_tag, contents)

    def _head(self, call: InferRequest) -> bytes:
        request = self._messages.ModelInferRequest(model_name=call.model, model_version=call.version)
        _set_parameters(request, call.parameters)
        for tensor in call.inputs:
            described = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if isinstance(tensor.content, SharedMemoryRef):
                _set_parameters(described, tensor.content.parameters())
        for name, ref in (call.outputs or {}).items():
            output = request.outputs.add(name=name)
            if ref is not None:
                _set_parameters(output, ref.parameters())
        head: bytes = request.SerializeToString()
        return head

    def _read_part(self, message: bytes, headers: Sent) -> InferResponse:
        response, parts = _split(self._messages.ModelStreamInferResponse, message, self._response_tag)
        if text := response.error_message:
            raise ServerError(of_text(text, "UNKNOWN"), scrub(text, headers))
        return self._read(parts[-1] if parts else b"")

    def _read(self, message: bytes | memoryview) -> InferResponse:
        response, contents = _split(self._messages.ModelInferResponse, message, self._output_tag)
        parameters = response.parameters
        final = "triton_final_response" in parameters and parameters["triton_final_response"].bool_param
        described = response.outputs
        if contents and len(contents) != len(described):  # an output in shared memory has an empty entry
            raise BackendError(f"the server's response has {len(contents)} contents for {len(described)} outputs")
        outputs = {
            output.name: Tensor(
                output.name,
                output.datatype,
                tuple(output.shape),
                contents[position] if contents else _contents_of(output),
            )
            for position, output in enumerate(described)
        }
        return InferResponse(outputs, final, response.model_version)


def _split(kind: Any, message: bytes | memoryview, tag: int) -> tuple[Any, list[memoryview]]:
    """Split a message: return it without the fields of a tag, and these fields."""
    try:
        rest, contents = split_contents(message, tag)
        return kind.FromString(rest), contents
    except Exception as error:
        raise BackendError(f"the server's response cannot be read: {error}") from error


def _retry_after(metadata: Any) -> float | None:
    """Return the seconds after which to retry, from either of the two headers that front ends use."""
    values = {name: value for name, value in metadata or () if isinstance(value, str)}
    pushback = values.get("grpc-retry-pushback-ms")
    return retry_after(values.get("retry-after")) if pushback is None else retry_after(pushback, seconds=1e-3)


def _set_parameters(message: Any, values: Mapping[str, int | bool | str]) -> None:
    for name, value in values.items():
        setattr(message.parameters[name], _PARAMETERS[type(value)], value)


def _contents_of(described: Any) -> list[Any]:
    field = CONTENTS.get(described.datatype)
    return [] if field is None else list(getattr(described.contents, field))
