"""Gateways of an inference service, which terminate TLS, require a token, and announce limits.

``async with HttpGateway(server.http_url, token="t") as gateway: ... gateway.url``; ``GrpcGateway`` works in the same
way. Each forwards the admitted requests to a real server, and runs in the event loop of the caller.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs
import grpc
import yarl
from aiohttp import web

from servers.process import HOST, free_ports

__all__ = ["Certificates", "GrpcGateway", "HttpGateway"]

NOT_PASSED_ON = {"Host", "Content-Length"}


@attrs.frozen
class Certificates:
    """PEM files of the gateway, and of the authority of its clients; ``None``: clients need no certificate."""

    certificate: Path
    key: Path
    clients: Path | None = None


class _Gateway:
    """Common part of the gateways of both protocols.

    Args:
        target: ``host:port`` of the server.
        token: token that a client must send; ``None`` for none.
        tls: certificates of an encrypted gateway.

    Attributes:
        url: ``localhost:port``.
        rejections: rejections of the next inference calls, one each: ``"later"`` (429 or RESOURCE_EXHAUSTED, retry
            after 2.5 s) or ``"down"`` (503 or UNAVAILABLE, retry after 1.5 s).
        largest: bytes of the largest inference message; ``None`` for no limit.
        passed: number of forwarded inference calls.
    """

    def __init__(self, target: str, *, token: str | None = None, tls: Certificates | None = None) -> None:
        self._target = target
        self._token = token
        self._tls = tls
        (self._port,) = free_ports(1)
        self.url = f"localhost:{self._port}"
        self.rejections: list[str] = []
        self.largest: int | None = None
        self.passed = 0

    def rejection(self, headers: Any, body: bytes, *, inference: bool) -> str | None:
        """Return the reason to reject a call; ``None``: the gateway forwards it."""
        if self._token is not None and headers.get("authorization") != f"Bearer {self._token}":
            return "token"
        if not inference:
            return None
        if self.rejections:
            return self.rejections.pop(0)
        if self.largest is not None and len(body) > self.largest:
            return "size"
        self.passed += 1
        return None


class HttpGateway(_Gateway):
    """Gateway for HTTP."""

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._answer))
        await self._runner.setup()
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._tls.certificate, self._tls.key)
            if self._tls.clients is not None:
                context.load_verify_locations(self._tls.clients)
                context.verify_mode = ssl.CERT_REQUIRED
        await web.TCPSite(self._runner, HOST, self._port, ssl_context=context).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        match self.rejection(request.headers, body, inference=request.path.endswith("/infer")):
            case "token":
                return web.Response(status=401, text="a token, please")
            case "later":
                return web.Response(status=429, text="quota used up", headers={"Retry-After": "2.5"})
            case "down":
                return web.Response(status=503, text="scaling up", headers={"Retry-After": "1.5"})
            case "size":
                return web.Response(status=413, text="Request Entity")
        headers = {name: value for name, value in request.headers.items() if name not in NOT_PASSED_ON}
        url = yarl.URL(f"http://{self._target}{request.raw_path}", encoded=True)
        async with self._client.request(request.method, url, data=body, headers=headers) as answer:
            passed_on = {name: value for name, value in answer.headers.items() if name.lower().startswith("inference-")}
            passed_on["Content-Type"] = answer.headers.get("Content-Type", "application/json")
            return web.Response(status=answer.status, body=await answer.read(), headers=passed_on)


class GrpcGateway(_Gateway):
    """Gateway for unary calls of gRPC."""

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server = grpc.aio.server(handlers=[_Forwarder(self)])
        if self._tls is None:
            self._server.add_insecure_port(f"{HOST}:{self._port}")
        else:
            clients = self._tls.clients
            credentials = grpc.ssl_server_credentials(
                [(self._tls.key.read_bytes(), self._tls.certificate.read_bytes())],
                None if clients is None else clients.read_bytes(),
                require_client_auth=clients is not None,
            )
            self._server.add_secure_port(f"{HOST}:{self._port}", credentials)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)
        await self._channel.close()

    async def forward(self, method: str, request: bytes, context: Any) -> bytes:
        """Return the server's response to an admitted call; abort the others."""
        rejection = self.rejection(
            dict(context.invocation_metadata()), request, inference=method.endswith("/ModelInfer")
        )
        status = grpc.StatusCode
        announced: Sequence[tuple[str, str]] = ()
        match rejection:
            case None:
                try:
                    answer: bytes = await self._channel.unary_unary(method)(request, timeout=context.time_remaining())
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details())
                    raise  # abort does not return
                return answer
            case "token":
                code, text = status.UNAUTHENTICATED, "a token, please"
            case "later":
                code, text, announced = status.RESOURCE_EXHAUSTED, "quota used up", (("retry-after", "2.5"),)
            case "down":
                code, text, announced = status.UNAVAILABLE, "scaling up", (("grpc-retry-pushback-ms", "1500"),)
            case _:
                code, text = status.RESOURCE_EXHAUSTED, "Received message larger than max"
        await context.abort(code, text, trailing_metadata=announced)
        raise AssertionError("abort does not return")


class _Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc publishes no types
    def __init__(self, gateway: GrpcGateway) -> None:
        self._gateway = gateway

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return await self._gateway.forward(details.method, request, context)

        return grpc.unary_unary_rpc_method_handler(answer)
