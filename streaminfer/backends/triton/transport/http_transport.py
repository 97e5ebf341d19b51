"""Transport over HTTP, on asyncio, with binary tensors if the server supports them, and JSON otherwise.

It uses ``aiohttp``, like ``tritonclient.http.aio``. It does not use that client, which copies each tensor three times,
raises aiohttp's warning for bodies above 1 MiB, does not support Unix sockets, and has one timeout for all calls.

If a call is cancelled or late, its connection is closed; the server runs it all the same, because HTTP cannot cancel. A
probe then makes a connection for the next call. Otherwise no call would ever get a response where the handshakes and a
response take longer than a call has.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from streaminfer._internal.loading.extras import require
from streaminfer.backends.triton.dtypes import raw, strings
from streaminfer.backends.triton.endpoint import Endpoint
from streaminfer.backends.triton.errors import ServerError, of_http_status, retry_after
from streaminfer.backends.triton.messages import InferRequest, InferResponse, SharedMemoryRef, Tensor
from streaminfer.backends.triton.transport.headers import Headers, raise_scrubbed, scrub
from streaminfer.errors import BackendError, Closed

__all__ = ["HttpTransport"]

_HEAD_LENGTH = "Inference-Header-Content-Length"
_MAX_SINGLE_PIECE = 1 << 16  # bytes; smaller bodies are sent in one piece
_PROBE_S = 2.0  # as long as gRPC's attempts to connect


class HttpTransport:
    """Transport over HTTP, see :mod:`streaminfer.backends.triton.transport`; belongs to its event loop.

    Args:
        address: the address of the server.
        headers: headers of every call.

    Attributes:
        binary: whether tensors are sent as bytes; else as JSON.

    Raises:
        MissingExtra: ``aiohttp`` is not installed.
        OSError: a file of ``tls`` cannot be read.
        ValueError: a file of ``tls`` is invalid.
    """

    def __init__(self, address: Endpoint, headers: Headers) -> None:
        http = self._http = require("aiohttp", extra="triton", purpose="TritonBackend(protocol='http')")
        self._headers = headers
        self._address = address.target
        self.binary = True
        self._closed = False
        self._probe: asyncio.Task[None] | None = None
        tls = address.tls
        self._server_name = None if tls is None else tls.server_name
        # not aiohttp's `trust_env`: it also sends the passwords of ~/.netrc, and reads that file for every call
        self._proxy = {} if tls is None else _proxy_of(address.host)
        options: dict[str, Any] = {"limit": 0}  # the batcher limits the calls
        if tls is not None:
            options["ssl"] = tls.context()
        connector = http.TCPConnector(**options) if address.host else http.UnixConnector(address.path, limit=0)
        self._root = f"{'http' if tls is None else 'https'}://{address if address.host else 'localhost'}/v2"
        self._session = http.ClientSession(
            connector=connector,
            # tensors compress badly, but some Triton servers would compress them: 19 MB then take 0.6 s longer
            headers={"Accept-Encoding": "identity"},
            timeout=http.ClientTimeout(total=None),
            cookie_jar=http.DummyCookieJar(),
        )

    async def server(self, timeout_s: float) -> Mapping[str, Any]:
        """Return name, version and extensions of the server."""
        return await self._get("", timeout_s)

    async def ready(self, model: str, version: str, timeout_s: float) -> bool:
        """Return whether the model is loaded."""
        try:
            await self._call("GET", f"{_path(model, version)}/ready", timeout_s)
        except ServerError as failure:
            # Triton responds 400 if the model is not ready
            if failure.status in {"INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"} and failure.__cause__ is None:
                return False
            raise
        return True

    async def metadata(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's inputs, outputs and versions."""
        return await self._get(_path(model, version), timeout_s)

    async def config(self, model: str, version: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the model's configuration."""
        return await self._get(f"{_path(model, version)}/config", timeout_s)

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the index of the server's model repository."""
        return list(_parsed(await self._post("/repository/index", {}, timeout_s), list))

    async def load(self, model: str, timeout_s: float) -> None:
        """Make the server load a model; returns when it is loaded."""
        await self._post(f"/repository/models/{quote(model, safe='')}/load", {}, timeout_s)

    async def unload(self, model: str, timeout_s: float) -> None:
        """Make the server unload a model and the models that only it needs; may return before they are unloaded."""
        body = {"parameters": {"unload_dependents": True}}
        await self._post(f"/repository/models/{quote(model, safe='')}/unload", body, timeout_s)

    async def statistics(self, model: str, version: str, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """Return the counters of the model, by version."""
        return list((await self._get(f"{_path(model, version)}/stats", timeout_s)).get("model_stats", ()))

    async def register(self, name: str, key: str, byte_size: int, timeout_s: float) -> None:
        """Make the server map shared memory."""
        body = {"key": f"/{key}", "offset": 0, "byte_size": byte_size}
        await self._post(f"/systemsharedmemory/region/{quote(name, safe='')}/register", body, timeout_s)

    async def unregister(self, name: str, timeout_s: float) -> None:
        """Make the server forget shared memory."""
        await self._post(f"/systemsharedmemory/region/{quote(name, safe='')}/unregister", {}, timeout_s)

    async def registered(self, timeout_s: float) -> Sequence[str]:
        """Return the names of the shared memory that the server knows."""
        content, _ = await self._call("GET", "/systemsharedmemory/status", timeout_s)
        return [str(region["name"]) for region in _parsed(content, list)]

    async def infer(self, call: InferRequest, timeout_s: float) -> InferResponse:
        """Send a request and return its response."""
        contents: list[Any] = []
        head = json.dumps(self._head(call, contents)).encode()
        headers = {"Content-Type": "application/json"}
        if contents:
            headers = {"Content-Type": "application/octet-stream", _HEAD_LENGTH: str(len(head))}
        body: Any
        size = len(head) + sum(memoryview(content).nbytes for content in contents)
        if size <= _MAX_SINGLE_PIECE or not contents:
            body = b"".join((head, *contents))
        else:
            headers["Content-Length"] = str(size)
            body = _in_parts(head, contents)
        content, head_length = await self._call(
            "POST", f"{_path(call.model, call.version)}/infer", timeout_s, body, headers
        )
        return _read(content, head_length)

    async def stream(self, call: InferRequest, timeout_s: float | None) -> AsyncGenerator[InferResponse, None]:
        """Raise: HTTP has no streams of responses.

        Raises:
            BackendError: always.
        """
        del timeout_s
        raise BackendError(f"model {call.model!r}: a stream of responses needs protocol='grpc'")
        yield  # pragma: no cover - makes it the generator that the protocol wants

    async def close(self) -> None:
        """End all running calls, and the connections. May be repeated."""
        self._closed = True
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self._session.close()

    def _make_connection(self) -> None:
        if not self._closed and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._call_probe())

    async def _call_probe(self) -> None:
        with contextlib.suppress(BackendError, TimeoutError, self._http.ClientError, OSError):
            async with (
                asyncio.timeout(_PROBE_S),
                self._request("GET", "/health/live", dict(self._headers.now())) as reply,
            ):
                await reply.read()

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Any:
        return self._session.request(
            method,
            self._root + path,
            data=body,
            headers=headers,
            server_hostname=self._server_name,
            **self._proxy,
            allow_redirects=False,  # a redirect would send the token to another server
        )

    async def _get(self, path: str, timeout_s: float) -> Mapping[str, Any]:
        content, _ = await self._call("GET", path, timeout_s)
        described: Mapping[str, Any] = _parsed(content, dict)
        return described

    async def _post(self, path: str, body: Any, timeout_s: float) -> bytes:
        content, _ = await self._call(
            "POST", path, timeout_s, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return content

    async def _call(
        self, method: str, path: str, timeout_s: float, body: Any = None, extra: Mapping[str, str] | None = None
    ) -> tuple[bytes, str | None]:
        """Send a request; return the body of the response, and the header with the length of its JSON part."""
        if self._closed:
            raise Closed("the connection to the server was closed")
        headers = self._headers.now()
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._request(method, path, {**dict(headers), **(extra or {})}, body) as reply,
            ):
                content: bytes = await reply.read()
                status = reply.status
                retry_header = reply.headers.get("Retry-After")
                head_length = reply.headers.get(_HEAD_LENGTH)
        except asyncio.CancelledError:
            self._make_connection()  # a batcher cancels at the deadline, before the timeout
            raise
        except TimeoutError as error:
            self._make_connection()
            raise ServerError("DEADLINE_EXCEEDED", f"no response within {timeout_s:.6f} s") from error
        except (self._http.ClientError, OSError) as error:
            if self._closed:
                raise Closed("the connection to the server was closed") from error
            text = str(error) or type(error).__name__
            if self._address not in text:
                text = f"{self._address}: {text}"
            raise_scrubbed(headers, "UNAVAILABLE", text, error)
        if status == 200:
            return content, head_length
        text = scrub(_error_text(content), headers) or f"HTTP status {status}"
        if status == 413:
            text = f"too large: {text}"  # front ends word this differently
        raise ServerError(of_http_status(status, text), text, retry_after(retry_header))

    def _head(self, call: InferRequest, contents: list[Any]) -> dict[str, Any]:
        parameters = dict(call.parameters)
        head: dict[str, Any] = {"inputs": [self._described(tensor, contents) for tensor in call.inputs]}
        if call.outputs is not None:
            head["outputs"] = [
                {"name": name, "parameters": {"binary_data": self.binary} if ref is None else ref.parameters()}
                for name, ref in call.outputs.items()
            ]
        elif self.binary:
            parameters["binary_data_output"] = True
        if parameters:
            head["parameters"] = parameters
        return head

    def _described(self, tensor: Tensor, contents: list[Any]) -> dict[str, Any]:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if isinstance(tensor.content, SharedMemoryRef):
            described["parameters"] = tensor.content.parameters()
        elif self.binary:
            content = raw(tensor.content)
            described["parameters"] = {"binary_data_size": memoryview(content).nbytes}
            contents.append(content)
        else:
            content = tensor.content
            text = tensor.datatype == "BYTES"
            described["data"] = strings(content) if text else content.ravel().tolist()
        return described


def _proxy_of(host: str) -> dict[str, Any]:
    """Return aiohttp's options for the proxy that the environment names for encrypted calls to a host."""
    proxy = None if proxy_bypass(host) else getproxies().get("https")
    if proxy is None:
        return {}
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    options: dict[str, Any] = {"proxy": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"}
    if parts.username is not None:  # passed separately, because errors show the address
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        options["proxy_headers"] = {"Proxy-Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
    return options


def _path(model: str, version: str) -> str:
    path = f"/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


async def _in_parts(head: bytes, contents: Sequence[Any]) -> AsyncGenerator[Any, None]:
    yield head
    for content in contents:
        view = memoryview(content)
        if view.nbytes:  # an empty view cannot be cast
            yield view.cast("B")


def _error_text(body: bytes) -> str:
    try:
        content = json.loads(body)
        return str(content.get("error") or content.get("detail") or content)
    except (ValueError, AttributeError, RecursionError):
        return body[:500].decode(errors="replace").strip()


def _parsed(body: bytes | memoryview, kind: type) -> Any:
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise BackendError(f"the server's response cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise BackendError(
            f"the server's response cannot be read: expected a {kind.__name__}, got {type(value).__name__}"
        )
    return value


def _read(body: bytes, head_length: str | None) -> InferResponse:
    view = memoryview(body)
    try:
        end = len(body) if head_length is None else int(head_length)
        outputs = {}
        head = _parsed(_part(view, 0, end), dict)
        for described in head["outputs"]:
            parameters = described.get("parameters") or {}
            content: Any = described.get("data")
            if "binary_data_size" in parameters:
                start, end = end, end + int(parameters["binary_data_size"])
                content = _part(view, start, end)
            shape = tuple(int(size) for size in described["shape"])
            outputs[described["name"]] = Tensor(described["name"], described["datatype"], shape, content)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"the server's response cannot be read: {type(error).__name__}: {error}") from error
    return InferResponse(outputs, version=str(head.get("model_version") or ""))


def _part(view: memoryview, start: int, end: int) -> memoryview:
    if not start <= end <= len(view):
        raise BackendError(
            f"the server's response is cut short: {len(view)} bytes, of which {start} to {end} are wanted"
        )
    return view[start:end]
