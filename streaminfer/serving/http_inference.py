"""Inference requests of an ASGI app, from the first message of the body to the response.

A body that comes in pieces is copied once, into a buffer whose first tensor lies aligned; the arrays that the stack
gets are views of it, or of the server's only piece. While the stack works, the app listens for the client to go away,
and then cancels the request.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

from streaminfer.serving._exchanges_cy import ClientGone, Exchange, ExchangeWatch
from streaminfer.serving.deadlines import SETTING_HEADERS, TIME_LEFT, RequestSettings, read_settings
from streaminfer.serving.errors import RequestRejected, describe_failure
from streaminfer.serving.infer_request import (
    HEAD_LENGTH,
    InferHead,
    parse_generate,
    parse_head,
    parse_head_length,
    read_contents,
    split_body,
)
from streaminfer.serving.infer_response import JSON_TYPE, Outputs, render_generated, render_response

if TYPE_CHECKING:
    from streaminfer.serving.limits import Limits
    from streaminfer.serving.models import ServedModel

__all__ = ["NO_STORE", "HttpInference", "Receive", "Reply", "Scope", "Send", "describe_error"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Headers = tuple[tuple[bytes, bytes], ...]

NO_STORE = (b"cache-control", b"no-store")
_LOG = logging.getLogger("streaminfer")
_ALIGNMENT = 64
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""What a browser sends to another site without asking it."""
_EVENTS = ((b"content-type", b"text/event-stream"), NO_STORE)
_HEAD_LENGTH, _TIME_LEFT = HEAD_LENGTH.encode(), TIME_LEFT.encode()
_SETTING_HEADERS = frozenset(name.encode() for name in SETTING_HEADERS)
_NO_HEADERS: _Headers = ()


class Reply(NamedTuple):
    """A response.

    Attributes:
        parts: of the body.
        headers: without the length of the body.
        status: of HTTP.
    """

    parts: list[Any]
    headers: _Headers = (JSON_TYPE,)
    status: int = 200


class HttpInference:
    """Answers the inference requests of an app.

    Args:
        limits: how much one request may bring.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._watch = ExchangeWatch(limits.body_timeout_s)

    async def answer(self, scope: Scope, receive: Receive, send: Send, model: ServedModel, kind: str) -> Reply | None:
        """Answer a request.

        Args:
            scope: of the ASGI server, as the next two.
            receive: as above.
            send: as above.
            model: that answers.
            kind: ``infer``, ``generate`` or ``generate_stream``.

        Returns:
            The response; ``None``: it is sent already.

        Raises:
            StreamInferError: it could not be answered.
            ClientGone: the client has gone.
        """
        with Exchange(self._watch, scope, receive) as exchange:
            arrived_ns = model.now_ns()
            headers: dict[bytes, bytes] = dict(scope["headers"])
            head_length = self._check_headers(headers)
            exchange.body_is_read = False
            message = await receive()
            body: bytes | memoryview = message.get("body", b"")
            if message["type"] != "http.request" or message.get("more_body", False):
                body = await self._read_on(message, head_length, receive)
            elif len(body) > self._limits.max_body_bytes:
                raise _too_large(self._limits.max_body_bytes)
            exchange.body_is_read, exchange.looks = True, 0  # from now on it is the client that is watched
            if kind == "infer":
                text, content = split_body(memoryview(body), head_length)
                key = b"" if head_length is None else bytes(text)
                head = model.head(key, lambda tensors: parse_head(text, tensors, self._limits), arrived_ns)
                call = read_contents(head, content)
            else:
                view = memoryview(body)
                head = model.head(b"", lambda tensors: parse_generate(view, tensors, self._limits), arrived_ns)
                call = head.read(())
            answer = await model.infer(call, _settings(headers, head), arrived_ns, takes_many=kind == "generate_stream")
            left = _NO_HEADERS
            if answer.time_left_s is not None:
                left = ((_TIME_LEFT, b"%.6f" % answer.time_left_s),)
            if kind == "generate_stream":
                answers = _only(answer.arrays) if answer.stream is None else answer.stream
                await _send_events(model, head, answers, left, send)
                return None
            if kind == "generate":
                return Reply([render_generated(model.name, model.version, head, answer.arrays)], (JSON_TYPE, *left))
            parts, kinds = render_response(model.name, model.version, head, answer, model.announced)
            return Reply(parts, (*kinds, *left))

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> int | None:
        """The length of the body's JSON.

        Raises:
            InvalidInput: the header for the length cannot be read.
            RequestRejected: the body is too large, or of a kind that is not accepted.
        """
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestRejected(415, "content-encoding: expected identity", closes_connection=True)
        content_type = headers.get(b"content-type")
        if content_type is not None and content_type.partition(b";")[0].strip().lower() in _FORMS:
            raise RequestRejected(
                415, "content-type: expected application/json or application/octet-stream", closes_connection=True
            )
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and (len(stated) > 15 or int(stated) > self._limits.max_body_bytes):
            raise _too_large(self._limits.max_body_bytes)
        said = headers.get(_HEAD_LENGTH)
        return None if said is None else parse_head_length(said)

    async def _read_on(self, message: Scope, head_length: int | None, receive: Receive) -> memoryview:
        """The body, of which the first message has come.

        Raises:
            RequestRejected: it is too large.
            ClientGone: it ends too early.
        """
        limit = self._limits.max_body_bytes
        padding = -(head_length or 0) % _ALIGNMENT
        body = bytearray(padding) + message.get("body", b"")
        while message.get("more_body", False) and len(body) <= limit + padding:
            message = await receive()
            body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > limit + padding:
            raise _too_large(limit)
        return memoryview(body)[padding:]


def describe_error(error: Exception) -> Reply:
    """Return the response to a request that failed."""
    failure = describe_failure(error)
    if failure.is_internal:
        _LOG.error("a request failed", exc_info=error)
    headers = [JSON_TYPE]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_s))
    if isinstance(error, RequestRejected):
        headers += [(b"allow", error.allow.encode())] if error.allow else []
        headers += [(b"connection", b"close")] if error.closes_connection else []
    return Reply([json.dumps({"error": failure.text}).encode()], tuple(headers), failure.status)


async def _send_events(
    model: ServedModel, head: InferHead, answers: AsyncGenerator[Outputs, None], left: _Headers, send: Send
) -> None:
    """Sends an event for each answer; an error before the first one is a status, and later an event."""
    async with contextlib.aclosing(answers):
        event: bytes | None = await _next_event(model, head, answers)
        await send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *left]})
        while event is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            try:
                event = await _next_event(model, head, answers)
            except Exception as error:  # noqa: BLE001 - the status is sent already
                event = b"data: " + describe_error(error).parts[0] + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
                break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next_event(model: ServedModel, head: InferHead, answers: AsyncGenerator[Outputs, None]) -> bytes | None:
    arrays = await anext(answers, None)
    return None if arrays is None else b"data: " + render_generated(model.name, model.version, head, arrays) + b"\n\n"


async def _only(arrays: Outputs) -> AsyncGenerator[Outputs, None]:
    yield arrays


def _settings(headers: Mapping[bytes, bytes], head: InferHead) -> RequestSettings:
    if _SETTING_HEADERS.isdisjoint(headers):
        return head.settings
    said = {name.decode(): headers[name].decode("latin-1") for name in _SETTING_HEADERS & headers.keys()}
    return read_settings(said, head.parameters)


def _too_large(limit: int) -> RequestRejected:
    return RequestRejected(413, f"body: expected at most {limit} bytes, got more", closes_connection=True)
