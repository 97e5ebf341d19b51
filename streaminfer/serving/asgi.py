"""`asgi_app`: stacks as models of the Open Inference Protocol, an ASGI app to mount or to run.

A body that comes in pieces is copied once, into a buffer whose first tensor lies aligned; the arrays that the stack
gets are views of it, or of the server's only piece. While the stack works, the app listens for the client to go away,
and then cancels the request.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from streaminfer._internal.validation import check_duration
from streaminfer._runtime.stopping import STOP_LIMIT_S
from streaminfer.serving.deadlines import SETTING_HEADERS, TIME_LEFT, RequestSettings, read_settings
from streaminfer.serving.errors import RequestRejected, describe_failure
from streaminfer.serving.exchanges import ClientGone, Exchange, ExchangeWatch
from streaminfer.serving.infer_request import (
    HEAD_LENGTH,
    InferHead,
    parse_generate,
    parse_head,
    parse_head_length,
    read_contents,
    split_body,
)
from streaminfer.serving.infer_response import Outputs, render_generated, render_response
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.models import EXTENSIONS, VERSION, ServedModel, find_model, served_models, server_version
from streaminfer.stack import Stack

__all__ = ["ServingApp", "asgi_app"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Headers = tuple[tuple[bytes, bytes], ...]

_LOG = logging.getLogger("streaminfer")
_ALIGNMENT = 64
_WHOLE_BYTES = 1 << 16
"""Responses below are sent in one piece."""
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""What a browser sends to another site without asking it."""
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_NO_STORE = (b"cache-control", b"no-store")
_EVENTS = ((b"content-type", b"text/event-stream"), _NO_STORE)
_HEAD_LENGTH, _TIME_LEFT = HEAD_LENGTH.encode(), TIME_LEFT.encode()
_SETTING_HEADERS = frozenset(name.encode() for name in SETTING_HEADERS)
_NO_HEADERS: _Headers = ()


class _Reply(NamedTuple):
    parts: list[bytes | memoryview]
    headers: _Headers = (_JSON,)
    status: int = 200


def asgi_app(
    stacks: Mapping[str, Stack], *, limits: Limits | None = None, stop_timeout_s: float | None = STOP_LIMIT_S
) -> "ServingApp":
    """Return an ASGI app that serves stacks over the Open Inference Protocol (KServe v2, Triton's HTTP).

    Run it under an ASGI server, or mount it in FastAPI or Starlette. Run by a server, it starts the stacks that do not
    run yet, and at the end completes their requests and stops them. A mounted app gets no such events: enter it, or
    the stacks, in the lifespan of the outer app.

    The app has no login and does not encrypt: put it behind what does.

    Args:
        stacks: by the names of their models.
        limits: how much one request may bring; ``None``: the defaults.
        stop_timeout_s: seconds for the requests in flight at the end; ``None``: no limit.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Example:
        ``app.mount("/inference", si.serving.asgi_app({"faces": stack}))``.
    """
    if stop_timeout_s is not None:
        check_duration("stop_timeout_s", stop_timeout_s)
    limits = checked_limits(limits)
    return ServingApp(served_models(stacks, limits), limits, stop_timeout_s)


class ServingApp:
    """The ASGI app of `asgi_app`; ``async with app`` starts the stacks that do not run, and stops them.

    Args:
        models: by name.
        limits: how much one request may bring.
        stop_timeout_s: seconds for the requests in flight at the end.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, stop_timeout_s: float | None) -> None:
        self._models = models
        self._limits = limits
        self._stop_timeout_s = stop_timeout_s
        self._started: list[Stack] = []
        self._watch = ExchangeWatch(limits.body_timeout_s)
        self._inference = {
            f"/v2/models/{name}{version}/{kind}": (model, kind)
            for name, model in models.items()
            for version in ("", f"/versions/{VERSION}")
            for kind in ("infer", "generate", "generate_stream")
        }

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request of the server."""
        if scope["type"] == "http":
            await self._respond(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def __aenter__(self) -> Self:
        try:
            for model in self._models.values():
                if model.stack.stack_state in {"new", "stopped"}:
                    await model.stack.start()
                    self._started.append(model.stack)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        started, self._started = self._started, []
        stops = [stack.stop(timeout_s=self._stop_timeout_s) for stack in started]
        for error in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def _live(self, receive: _Receive, send: _Send) -> None:
        for step, change in (("startup", self.__aenter__), ("shutdown", self._stop)):
            await receive()
            try:
                await change()
            except Exception as error:  # noqa: BLE001 - the server is told, and ends
                _LOG.exception("%s failed", step)
                await send({"type": f"lifespan.{step}.failed", "message": str(error)})
                return
            await send({"type": f"lifespan.{step}.complete"})

    # -- requests -----------------------------------------------------------------------------------------------

    async def _respond(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        path, root = scope["path"], scope.get("root_path", "")
        # a mount leaves its prefix in the path or takes it off, depending on the framework's version
        path = path.removeprefix(root) if root and path.startswith(root) else path
        try:
            reply: _Reply | None
            if (asked := self._inference.get(path.rstrip("/"))) is None:
                reply = self._describe(path)
                _allow(scope, "GET, HEAD")
            else:
                _allow(scope, "POST")
                with Exchange(self._watch, receive) as exchange:
                    reply = await self._infer(scope, exchange, send, *asked)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001 - each becomes a status; a cancellation passes
            reply = _failed(error)
        if reply is not None:
            await _send_reply(reply, scope["method"], send)

    def _describe(self, path: str) -> _Reply:
        models = self._models
        match path.strip("/").split("/"):
            case ["v2"]:
                return _json({"name": "streaminfer", "version": server_version(), "extensions": EXTENSIONS})
            case ["v2", "health", "live"]:
                return _health(True)
            case ["v2", "health", "ready"]:
                return _health(all(model.ready for model in models.values()))
            case ["v2", "models", "stats"] if "stats" not in models:
                return _json({"model_stats": [model.statistics() for model in models.values()]})
            case ["v2", "models", name, "versions", version, *rest]:
                return _describe_model(find_model(models, name, version), rest)
            case ["v2", "models", name, *rest]:
                return _describe_model(find_model(models, name, ""), rest)
            case _:
                raise RequestRejected(404, "no such address")

    async def _infer(
        self, scope: _Scope, exchange: Exchange, send: _Send, model: ServedModel, kind: str
    ) -> _Reply | None:
        """The response; ``None``: it is sent already."""
        arrived_ns = model.now_ns()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        body, head_length = await self._read(headers, exchange)
        if kind == "infer":
            text, content = split_body(body, head_length)
            key = b"" if head_length is None else bytes(text)
            head = model.head(key, lambda tensors: parse_head(text, tensors, self._limits), arrived_ns)
            call = read_contents(head, content)
        else:
            head = model.head(b"", lambda tensors: parse_generate(body, tensors, self._limits), arrived_ns)
            call = head.read(())
        answer = await model.infer(call, _settings(headers, head), arrived_ns, takes_many=kind == "generate_stream")
        left = _NO_HEADERS
        if answer.time_left_s is not None:
            left = ((_TIME_LEFT, b"%.6f" % answer.time_left_s),)
        if kind == "generate_stream":
            answers = _only(answer.arrays) if answer.stream is None else answer.stream
            await _send_events(model.name, head, answers, left, send)
            return None
        if kind == "generate":
            return _Reply([render_generated(model.name, VERSION, head, answer.arrays)], (_JSON, *left))
        parts, length = render_response(model.name, VERSION, head, answer.arrays, model.announced)
        if length is None:
            return _Reply(parts, (_JSON, *left))
        return _Reply(parts, (_BINARY, (_HEAD_LENGTH, b"%d" % length), *left))

    async def _read(self, headers: Mapping[bytes, bytes], exchange: Exchange) -> tuple[memoryview, int | None]:
        """The body, and the length of its JSON.

        Raises:
            InvalidInput: the header for the length cannot be read.
            RequestRejected: it is too large, too slow, or of a kind that is not accepted.
        """
        limit = self._limits.max_body_bytes
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestRejected(415, "content-encoding: expected identity", closes_connection=True)
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in _FORMS:
            raise RequestRejected(
                415, "content-type: expected application/json or application/octet-stream", closes_connection=True
            )
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and (len(stated) > 15 or int(stated) > limit):
            raise _too_large(limit)
        said = headers.get(_HEAD_LENGTH)
        head_length = None if said is None else parse_head_length(said.decode("latin-1"))
        message = await exchange.receive()
        body = message.get("body", b"")
        padding = 0
        if message.get("more_body", False):
            padding = -(head_length or 0) % _ALIGNMENT
            body = bytearray(padding) + body
        while message.get("more_body", False) and len(body) <= limit + padding:
            message = await exchange.receive()
            body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > limit + padding:
            raise _too_large(limit)
        exchange.has_body()
        return memoryview(body)[padding:], head_length

    def __repr__(self) -> str:
        return f"ServingApp({', '.join(self._models)})"


async def _send_reply(reply: _Reply, method: str, send: _Send) -> None:
    parts = reply.parts
    size = sum(map(len, parts))
    headers = [*reply.headers, (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if size <= _WHOLE_BYTES or method == "HEAD":
        parts = [b"" if method == "HEAD" else b"".join(parts)]
    last = len(parts) - 1
    for number, part in enumerate(parts):
        await send({"type": "http.response.body", "body": part, "more_body": number < last})


async def _send_events(
    name: str, head: InferHead, answers: AsyncGenerator[Outputs, None], left: _Headers, send: _Send
) -> None:
    """Sends an event for each answer; an error before the first one is a status, and later an event."""
    async with contextlib.aclosing(answers):
        event: bytes | None = await _next_event(name, head, answers)
        await send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *left]})
        while event is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            try:
                event = await _next_event(name, head, answers)
            except Exception as error:  # noqa: BLE001 - the status is sent already
                event = b"data: " + _failed(error).parts[0] + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
                break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next_event(name: str, head: InferHead, answers: AsyncGenerator[Outputs, None]) -> bytes | None:
    arrays = await anext(answers, None)
    return None if arrays is None else b"data: " + render_generated(name, VERSION, head, arrays) + b"\n\n"


async def _only(arrays: Outputs) -> AsyncGenerator[Outputs, None]:
    yield arrays


def _settings(headers: Mapping[bytes, bytes], head: InferHead) -> RequestSettings:
    if _SETTING_HEADERS.isdisjoint(headers):
        return head.settings
    said = {name.decode(): headers[name].decode("latin-1") for name in _SETTING_HEADERS & headers.keys()}
    return read_settings(said, head.parameters)


def _describe_model(model: ServedModel, rest: list[str]) -> _Reply:
    match rest:
        case []:
            return _json(model.metadata())
        case ["ready"]:
            return _health(model.ready)
        case ["config"]:
            return _json(model.config())
        case ["stats"]:
            return _json({"model_stats": [model.statistics()]})
        case _:
            raise RequestRejected(404, "no such address")


def _too_large(limit: int) -> RequestRejected:
    return RequestRejected(413, f"body: expected at most {limit} bytes, got more", closes_connection=True)


def _allow(scope: _Scope, methods: str) -> None:
    if scope["method"] not in methods.split(", "):
        raise RequestRejected(405, f"only {methods} here", allow=methods)


def _json(content: Any) -> _Reply:
    return _Reply([json.dumps(content).encode()])


def _health(ready: bool) -> _Reply:
    return _Reply([], (_NO_STORE,), 200 if ready else 503)


def _failed(error: Exception) -> _Reply:
    failure = describe_failure(error)
    if failure.is_internal:
        _LOG.error("a request failed", exc_info=error)
    headers = [_JSON]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_s))
    if isinstance(error, RequestRejected):
        headers += [(b"allow", error.allow.encode())] if error.allow else []
        headers += [(b"connection", b"close")] if error.closes_connection else []
    return _Reply([json.dumps({"error": failure.text}).encode()], tuple(headers), failure.status)
