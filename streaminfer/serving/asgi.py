"""`asgi_app`: stacks as models of the Open Inference Protocol, an ASGI app to mount or to run.

The body of a request is copied once, into a buffer whose first tensor lies aligned; the arrays that the stack gets are
views of it. While the stack works, the app listens for the client to go away, and then cancels the request.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from streaminfer._internal.validation import check_duration
from streaminfer._runtime.stopping import STOP_LIMIT_S
from streaminfer.serving.deadlines import TIME_LEFT, read_settings
from streaminfer.serving.errors import RequestRejected, describe_failure
from streaminfer.serving.infer_request import HEAD_LENGTH, parse_body, parse_generate, parse_head_length
from streaminfer.serving.infer_response import render_generated, render_response
from streaminfer.serving.limits import Limits, checked_limits
from streaminfer.serving.models import EXTENSIONS, VERSION, ServedModel, find_model, served_models, server_version
from streaminfer.stack import Stack

__all__ = ["ServingApp", "asgi_app"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Parts = list[bytes | memoryview]
T = TypeVar("T")

_LOG = logging.getLogger("streaminfer")
_ALIGNMENT = 64
_WHOLE_BYTES = 1 << 16
"""Responses below are sent in one piece."""
_LISTEN_AFTER_S = 0.005
"""A request that is answered sooner costs no task that listens for its client."""
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""What a browser sends to another site without asking it."""
_JSON = (b"content-type", b"application/json")
_STATUS_TEXT = ((b"cache-control", b"no-store"),)


class _ClientGone(Exception):  # noqa: N818 - not an error of the server
    """Raised in place of a response to a client that has gone."""


class _Reply(NamedTuple):
    parts: _Parts
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
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
        await asyncio.gather(*(stack.stop(timeout_s=self._stop_timeout_s) for stack in started))

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
        try:
            reply = await self._answer(scope, receive)
        except _ClientGone:
            return
        except Exception as error:  # noqa: BLE001 - each becomes a status; a cancellation passes
            reply = _failed(error)
        size = sum(map(len, reply.parts))
        headers = [*reply.headers, (b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        parts: _Parts = reply.parts
        if scope["method"] == "HEAD":
            parts = [b""]
        elif size <= _WHOLE_BYTES and len(parts) > 1:
            parts = [b"".join(parts)]
        last = len(parts) - 1
        for number, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": number < last})

    async def _answer(self, scope: _Scope, receive: _Receive) -> _Reply:
        path, root = scope["path"], scope.get("root_path", "")
        # a mount leaves its prefix in the path or takes it off, depending on the framework's version
        path = path.removeprefix(root) if root and path.startswith(root) else path
        match path.strip("/").split("/"):
            case ["v2", "models", name, "versions", version, *rest]:
                return await self._answer_model(scope, receive, find_model(self._models, name, version), rest)
            case ["v2", "models", name, *rest]:
                return await self._answer_model(scope, receive, find_model(self._models, name, ""), rest)
            case ["v2"]:
                _allow(scope, "GET, HEAD")
                return _json({"name": "streaminfer", "version": server_version(), "extensions": EXTENSIONS})
            case ["v2", "health", "live"]:
                _allow(scope, "GET, HEAD")
                return _Reply([], _STATUS_TEXT)
            case ["v2", "health", "ready"]:
                _allow(scope, "GET, HEAD")
                return _health(all(model.ready for model in self._models.values()))
            case _:
                raise RequestRejected(404, "no such address")

    async def _answer_model(self, scope: _Scope, receive: _Receive, model: ServedModel, rest: list[str]) -> _Reply:
        if rest in (["infer"], ["generate"], ["generate_stream"]):
            _allow(scope, "POST")
            return await self._infer(scope, receive, model, rest[0])
        if rest not in ([], ["ready"], ["config"], ["stats"]):
            raise RequestRejected(404, "no such address")
        _allow(scope, "GET, HEAD")
        match rest:
            case ["ready"]:
                return _health(model.ready)
            case ["config"]:
                return _json(model.config())
            case ["stats"]:
                return _json({"model_stats": [model.statistics()]})
            case _:
                return _json(model.metadata())

    async def _infer(self, scope: _Scope, receive: _Receive, model: ServedModel, kind: str) -> _Reply:
        arrived_ns = model.now_ns()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body, head_length = await self._read(headers, receive)
        tensors = model.current_tensors(arrived_ns)
        if kind == "infer":
            call = parse_body(body, head_length, tensors, self._limits)
        else:
            call = parse_generate(body, tensors, self._limits)
        settings = read_settings(headers, call.parameters)
        answer = await _unless_gone(receive, model.infer(call, settings, arrived_ns))
        left: tuple[tuple[bytes, bytes], ...] = ()
        if answer.time_left_s is not None:
            left = ((TIME_LEFT.encode(), b"%.6f" % answer.time_left_s),)
        if kind == "generate":
            return _Reply([render_generated(model.name, VERSION, call, answer)], (_JSON, *left))
        if kind == "generate_stream":
            event = b"data: " + render_generated(model.name, VERSION, call, answer) + b"\n\n"
            return _Reply([event], ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *left))
        parts, length = render_response(model.name, VERSION, call, answer, tensors)
        if length is None:
            return _Reply(parts, (_JSON, *left))
        binary = ((b"content-type", b"application/octet-stream"), (HEAD_LENGTH.encode(), b"%d" % length))
        return _Reply(parts, (*binary, *left))

    async def _read(self, headers: Mapping[str, str], receive: _Receive) -> tuple[memoryview, int | None]:
        """The body, and the length of its JSON.

        Raises:
            InvalidInput: the header for the length cannot be read.
            RequestRejected: it is too large, too slow, or of a kind that is not accepted.
        """
        limit = self._limits.max_body_bytes
        if headers.get("content-encoding", "identity") != "identity":
            raise RequestRejected(415, "content-encoding: expected identity")
        if headers.get("content-type", "").partition(";")[0].strip().lower() in _FORMS:
            raise RequestRejected(415, "content-type: expected application/json or application/octet-stream")
        stated = headers.get("content-length", "")
        if stated.isdecimal() and (len(stated) > 15 or int(stated) > limit):
            raise RequestRejected(413, f"body: expected at most {limit} bytes, got {stated[:20]}")
        head_length = parse_head_length(headers.get(HEAD_LENGTH))
        padding = -(head_length or 0) % _ALIGNMENT
        body = bytearray(padding)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    body += message.get("body", b"")
                    if len(body) - padding > limit:
                        raise RequestRejected(413, f"body: expected at most {limit} bytes, got more")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestRejected(408, f"body: expected within {self._limits.body_timeout_s} s") from None
        return memoryview(body)[padding:], head_length

    def __repr__(self) -> str:
        return f"ServingApp({', '.join(self._models)})"


async def _unless_gone(receive: _Receive, answering: Coroutine[Any, Any, T]) -> T:
    """Await an answer; cancel it as soon as the client goes away."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine of an ASGI server runs in one
    gone = False

    def notice(listening: "asyncio.Future[MutableMapping[str, Any]]") -> None:
        nonlocal gone
        if not listening.cancelled() and listening.exception() is None:
            gone = listening.result()["type"] == "http.disconnect"
            if gone:
                task.cancel()

    listening: asyncio.Future[MutableMapping[str, Any]] | None = None

    def listen() -> None:
        nonlocal listening
        listening = asyncio.ensure_future(receive())
        listening.add_done_callback(notice)

    timer = asyncio.get_running_loop().call_later(_LISTEN_AFTER_S, listen)
    try:
        return await answering
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise _ClientGone from None
        raise
    finally:
        timer.cancel()
        if listening is not None:
            listening.remove_done_callback(notice)
            listening.cancel()


def _allow(scope: _Scope, methods: str) -> None:
    if scope["method"] not in methods.split(", "):
        raise RequestRejected(405, f"only {methods} here", allow=methods)


def _json(content: Any) -> _Reply:
    return _Reply([json.dumps(content).encode()])


def _health(ready: bool) -> _Reply:
    return _Reply([], _STATUS_TEXT, 200 if ready else 503)


def _failed(error: Exception) -> _Reply:
    failure = describe_failure(error)
    if failure.is_internal:
        _LOG.error("a request failed", exc_info=error)
    headers = [_JSON]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_s))
    if isinstance(error, RequestRejected) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    return _Reply([json.dumps({"error": failure.text}).encode()], tuple(headers), failure.status)
