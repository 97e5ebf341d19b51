"""Servers that forward all requests to a real one, and replace inference responses by garbage.

``async with GrpcGarbage(server.grpc_url) as fake: ... fake.kind = "wrong_shape"``; ``HttpGarbage`` works in
the same way. They run in the event loop of the caller. They send valid HTTP with wrong contents.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc
from aiohttp import web
from tritonclient.grpc import service_pb2

from servers.process import HOST, free_ports

__all__ = ["KINDS", "GrpcGarbage", "HttpGarbage"]

KINDS = ("noise", "empty", "truncated", "wrong_shape", "fewer_rows", "wrong_type", "wrong_name", "no_output")
HEADER_SIZE = "Inference-Header-Content-Length"
# without Accept-Encoding, because parts of a compressed response could not be corrupted
NOT_PASSED_ON = {"Host", "Content-Length", "Accept-Encoding"}


class _Garbage(ABC):
    """Common part of both protocols.

    Attributes:
        url: ``host:port``.
        kind: fault of the responses, of :data:`KINDS`; ``None``: they are unchanged.
        spoilt: number of corrupted responses.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        (self._port,) = free_ports(1)
        self.url = f"{HOST}:{self._port}"
        self.kind: str | None = None
        self.spoilt = 0
        self._random = random.Random(3)

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _stop(self) -> None: ...

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def _spoil(self, body: bytes, spoil_parts: Callable[[bytes, str], bytes]) -> bytes:
        """Return a response of the current kind: unchanged, random bytes, empty, or a message with an error in it."""
        if self.kind is None:
            return body
        self.spoilt += 1
        match self.kind:
            case "noise":
                return self._random.randbytes(max(len(body), 64))
            case "empty":
                return b""
            case kind:
                return spoil_parts(body, kind)


class GrpcGarbage(_Garbage):
    """Garbage for unary calls of gRPC."""

    async def _start(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server = grpc.aio.server(handlers=[_Forwarder(self._forward)])
        if not self._server.add_insecure_port(self.url):
            raise RuntimeError(f"port {self.url} is taken")
        await self._server.start()

    async def _stop(self) -> None:
        await self._server.stop(None)
        await self._channel.close()

    async def _forward(self, method: str, request: bytes, context: Any) -> bytes:
        call = self._channel.unary_unary(method)
        try:
            answer: bytes = await call(request, timeout=context.time_remaining())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())
            raise  # abort does not return
        return self._spoil(answer, _spoil_grpc) if method.endswith("/ModelInfer") else answer


class _Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc publishes no types
    def __init__(self, forward: Callable[[str, bytes, Any], Any]) -> None:
        self._forward = forward

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return await self._forward(details.method, request, context)  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(answer)


def _spoil_grpc(body: bytes, kind: str) -> bytes:
    message = service_pb2.ModelInferResponse.FromString(body)
    output = message.outputs[0]
    match kind:
        case "truncated":
            message.raw_output_contents[0] = message.raw_output_contents[0][:-3]
        case "wrong_shape":
            output.shape[-1] += 1
        case "fewer_rows":
            row = len(message.raw_output_contents[0]) // output.shape[0]
            output.shape[0] -= 1
            message.raw_output_contents[0] = message.raw_output_contents[0][:-row]
        case "wrong_type":
            output.datatype = "INT32"
        case "wrong_name":
            output.name = "somebody"
        case "no_output":
            del message.outputs[:]
            del message.raw_output_contents[:]
        case _:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    spoilt: bytes = message.SerializeToString()
    return spoilt


class HttpGarbage(_Garbage):
    """Garbage for HTTP: responses with binary tensors, or all in JSON."""

    async def _start(self) -> None:
        self._client = aiohttp.ClientSession(skip_auto_headers=["Accept-Encoding"])
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self._port).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _forward(self, request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name not in NOT_PASSED_ON}
        address = f"http://{self._target}{request.path_qs}"
        async with self._client.request(request.method, address, data=await request.read(), headers=headers) as answer:
            body = await answer.read()
            kept = {"Content-Type", HEADER_SIZE}
            headers = {name: value for name, value in answer.headers.items() if name in kept}
            if request.path.endswith("/infer") and answer.status == 200:
                size = int(headers.get(HEADER_SIZE, len(body)))
                head = b""

                def spoil(body: bytes, kind: str) -> bytes:
                    nonlocal head
                    head, tensors = _spoil_http(body[:size], body[size:], kind)
                    return head + tensors

                body = self._spoil(body, spoil)
                if head and HEADER_SIZE in headers:
                    headers[HEADER_SIZE] = str(len(head))
            return web.Response(status=answer.status, body=body, headers=headers)


def _spoil_http(head: bytes, tensors: bytes, kind: str) -> tuple[bytes, bytes]:
    message = json.loads(head)
    output = message["outputs"][0]
    row = len(tensors) // output["shape"][0]
    match kind:
        case "truncated":
            tensors = tensors[:-3]
        case "wrong_shape":
            output["shape"][-1] += 1
        case "fewer_rows":
            output["shape"][0] -= 1
            tensors = tensors[:-row]
            output["parameters"]["binary_data_size"] -= row
        case "wrong_type":
            output["datatype"] = "INT32"
        case "wrong_name":
            output["name"] = "somebody"
        case "no_output":
            message["outputs"], tensors = [], b""
        case _:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    return json.dumps(message).encode(), tensors
