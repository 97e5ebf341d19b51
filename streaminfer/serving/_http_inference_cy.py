"""Inference requests of an ASGI app, from the first message of the body to the response.

A body that comes in pieces is copied once, into a buffer in which the first tensor is aligned. The stack gets arrays
that are views of this buffer, or of the body if it came in one piece. While the stack works, the app listens for the
client's disconnect, and then cancels the request.

One source, compiled with the C types of ``_http_inference_cy.pxd``, or run as Python.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any

from streaminfer.errors import InvalidInput
from streaminfer.serving._exchanges_cy import ClientGone, Exchange, ExchangeWatch
from streaminfer.serving._http_replies_cy import make_messages, reply, send_events
from streaminfer.serving.deadlines import SETTING_HEADERS, TIME_LEFT, RequestSettings, read_settings
from streaminfer.serving.errors import RequestRejected
from streaminfer.serving.requests._row_path_cy import join_parts
from streaminfer.serving.requests.infer_request import HEAD_LENGTH, parse_generate, parse_head, parse_head_length
from streaminfer.serving.requests.infer_response import JSON_TYPE, render_generated, render_response

if TYPE_CHECKING:
    from streaminfer.serving.limits import Limits
    from streaminfer.serving.requests._infer_head_cy import InferHead
    from streaminfer.serving.requests._model_requests_cy import ModelCall, ModelRequests
    from streaminfer.serving.requests.infer_response import Outputs
    from streaminfer.telemetry.asgi_app import Message, Receive, Send

__all__ = ["HttpInference"]

_ALIGNMENT = 64
_LONGEST_LENGTH = 15
_FORM_TYPES = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")
"""Types of content that a browser sends to another site without a preflight request."""
_HEAD_LENGTH, _TIME_LEFT = HEAD_LENGTH.encode(), TIME_LEFT.encode()
_SETTING_HEADERS = frozenset([name.encode() for name in SETTING_HEADERS])
_KNOWN_HEADERS = _SETTING_HEADERS | {b"content-encoding", b"content-length", b"content-type", _HEAD_LENGTH}


class HttpInference:
    """Responds to the inference requests of an app.

    Args:
        limits: limits of one request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._max_body_bytes = limits.max_body_bytes
        self._watch = ExchangeWatch(limits.body_timeout_s)

    async def answer(
        self, scope: Message, receive: Receive, send: Send, model: ModelRequests, kind: str
    ) -> list[Message]:
        """Respond to a request.

        Args:
            scope: from the ASGI server.
            receive: from the ASGI server.
            send: from the ASGI server.
            model: the model that is called.
            kind: ``infer``, ``generate`` or ``generate_stream``.

        Returns:
            The messages of the response; empty if it was sent already.

        Raises:
            StreamInferError: the request failed.
            ClientGone: the client has disconnected.
        """
        with Exchange(self._watch, scope, receive) as exchange:
            arrived_ns = model.now_ns()
            headers = _known_headers(scope["headers"])
            head_length = self._check_headers(headers)
            exchange.body_is_read = False
            message = await receive()
            body: Any = message.get("body", b"")
            if message["type"] != "http.request" or message.get("more_body", False):
                body = await self._read_rest(message, head_length, receive)
            elif len(body) > self._max_body_bytes:
                raise self._too_large()
            exchange.body_is_read, exchange.ticks = True, 0  # from now on, only a disconnect ends the work
            call = self._begin(exchange, model, kind, body, head_length, headers, arrived_ns)
            await call.complete(kind == "generate_stream")
            if kind != "generate_stream":
                return self._reply(call, kind)
            responses = _single_response(call.arrays or {}) if call.stream is None else call.stream
            await send_events(call, responses, _time_left(call), exchange, send)
            return []

    def _begin(
        self,
        exchange: Exchange,
        model: ModelRequests,
        kind: str,
        body: Any,
        head_length: int | None,
        headers: dict[bytes, bytes],
        arrived_ns: int,
    ) -> ModelCall:
        """Read the request, and send it to the model."""
        if kind == "infer":
            size = len(body)
            start = size if head_length is None else head_length
            if start > size:
                raise InvalidInput(f"Inference-Header-Content-Length: expected at most {size}, got {start}")
            shared = 0 if head_length is None else start
            head = model.head(body, shared, arrived_ns)
            if head is None:
                head = parse_head(memoryview(body)[:start], model.tensors, self._limits)
                model.store_head(body, shared, head)
            if size - start != head.content_size:
                raise InvalidInput(
                    f"body: expected {head.content_size} bytes behind its JSON, as the inputs state, got {size - start}"
                )
            rows = head.read(body, start, head.spans)
        else:
            model.head(body, 0, arrived_ns)
            head = parse_generate(memoryview(body), model.tensors, self._limits)
            rows = head.read(b"", 0, [])
        return model.begin(head, rows, _settings(headers, head), arrived_ns, exchange.loop)

    def _reply(self, call: ModelCall, kind: str) -> list[Message]:
        head, model, time_left = call.head, call.model, _time_left(call)
        row_reply = head.row_reply
        if call.parts is not None and row_reply is not None:
            return make_messages(join_parts(call.parts, row_reply.size), [*row_reply.headers, *time_left], 200)
        arrays = call.arrays or {}
        if kind == "generate":
            return reply([render_generated(model.name, head, arrays)], (JSON_TYPE, *time_left))
        parts, kinds = render_response(model.name, head, arrays, call.row, model.announced)
        return make_messages(parts, [*kinds, *time_left], 200)

    def _check_headers(self, headers: dict[bytes, bytes]) -> int | None:
        """Check the headers, and return the length of the body's JSON.

        Raises:
            RequestRejected: the header for the length cannot be read, the body is too large, or its content type is
                not accepted.
        """
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestRejected(415, "content-encoding: expected identity", closes_connection=True)
        content_type = headers.get(b"content-type")
        if content_type is not None and content_type.partition(b";")[0].strip().lower() in _FORM_TYPES:
            raise RequestRejected(
                415, "content-type: expected application/json or application/octet-stream", closes_connection=True
            )
        content_length = headers.get(b"content-length", b"")
        if content_length.isdigit() and (
            len(content_length) > _LONGEST_LENGTH or int(content_length) > self._max_body_bytes
        ):
            raise self._too_large()
        head_length = headers.get(_HEAD_LENGTH)
        return None if head_length is None else parse_head_length(head_length)

    async def _read_rest(self, message: Message, head_length: int | None, receive: Receive) -> memoryview:
        """Read and return the whole body, after its first message.

        Raises:
            RequestRejected: the body is too large.
            ClientGone: the client has disconnected before the end of the body.
        """
        padding = -(head_length or 0) % _ALIGNMENT
        limit = self._max_body_bytes + padding
        body = bytearray(padding) + message.get("body", b"")
        while message.get("more_body", False) and len(body) <= limit:
            message = await receive()
            body += message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > limit:
            raise self._too_large()
        return memoryview(body)[padding:]

    def _too_large(self) -> RequestRejected:
        message = f"body: expected at most {self._max_body_bytes} bytes, got more"
        return RequestRejected(413, message, closes_connection=True)


def _known_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers that matter to an inference request."""
    return {name: value for name, value in headers if name in _KNOWN_HEADERS}


def _settings(headers: dict[bytes, bytes], head: InferHead) -> RequestSettings:
    if _SETTING_HEADERS.isdisjoint(headers):
        return head.settings
    values = {name.decode(): headers[name].decode("latin-1") for name in _SETTING_HEADERS & headers.keys()}
    return read_settings(values, head.parameters)


def _time_left(call: ModelCall) -> list[tuple[bytes, bytes]]:
    return [] if call.time_left_s is None else [(_TIME_LEFT, b"%.6f" % call.time_left_s)]


async def _single_response(arrays: Outputs) -> AsyncGenerator[Outputs, None]:
    yield arrays
