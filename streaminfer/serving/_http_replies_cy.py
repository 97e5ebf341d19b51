"""Responses of an ASGI app, as messages for its server.

One source, compiled with the C types of ``_http_replies_cy.pxd``, or run as Python.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from streaminfer.serving._exchanges_cy import ClientGone
from streaminfer.serving.errors import RequestRejected, logged_failure
from streaminfer.serving.requests.infer_response import JSON_TYPE, Outputs, render_generated

if TYPE_CHECKING:
    from streaminfer.serving._exchanges_cy import Exchange
    from streaminfer.serving.requests._model_requests_cy import ModelCall
    from streaminfer.telemetry.asgi_app import Headers, Message, Send

__all__ = ["NO_STORE", "describe_error", "make_messages", "reply", "send_events", "without_body"]

NO_STORE = (b"cache-control", b"no-store")
_EVENTS = ((b"content-type", b"text/event-stream"), NO_STORE)


def make_messages(parts: list[Any], headers: list[tuple[bytes, bytes]], status: int) -> list[Message]:
    """Return the messages of a response.

    Args:
        parts: parts of the body.
        headers: all headers; the server owns the list from now on.
        status: the HTTP status.
    """
    messages: list[Message] = [{"type": "http.response.start", "status": status, "headers": headers}]
    for number, part in enumerate(parts, 1):
        messages.append({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
    return messages


def reply(parts: list[Any], headers: Headers = (JSON_TYPE,), status: int = 200) -> list[Message]:
    """Return the messages of a response; the length of its body is added to the headers."""
    length = (b"content-length", b"%d" % sum(map(len, parts)))
    return make_messages(parts or [b""], [*headers, length], status)


def without_body(messages: list[Message]) -> list[Message]:
    """Return the response to ``HEAD``, from the response to ``GET``."""
    return [messages[0], {"type": "http.response.body", "body": b"", "more_body": False}]


def describe_error(error: Exception) -> list[Message]:
    """Return the response to a failed request."""
    text, status, headers = _describe(error)
    return reply([text], headers, status)


def _describe(error: Exception) -> tuple[bytes, int, Headers]:
    failure = logged_failure(error)
    headers = [JSON_TYPE, NO_STORE]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_s))
    if isinstance(error, RequestRejected):
        headers += [(b"allow", error.allow.encode())] if error.allow else []
        headers += [(b"connection", b"close")] if error.closes_connection else []
    return json.dumps({"error": failure.text}).encode(), failure.status, headers


async def send_events(
    call: ModelCall, responses: AsyncGenerator[Outputs, None], headers: Headers, exchange: Exchange, send: Send
) -> None:
    """Send an event per response of the model; an error before the first one becomes a status, later ones an event.

    Args:
        call: the call of the model.
        responses: the responses of the model.
        headers: headers in addition to those of an event stream.
        exchange: records how much of the response was sent.
        send: from the ASGI server.

    Raises:
        ClientGone: the server reports a disconnect.
    """

    async def send_part(kind: str, **content: Any) -> None:
        try:
            await send({"type": f"http.response.{kind}", **content})
        except OSError as error:
            raise ClientGone(has_begun=True) from error

    async with contextlib.aclosing(responses):
        event: bytes | None = await _next_event(call, responses)
        exchange.has_begun = True
        await send_part("start", status=200, headers=[*_EVENTS, *headers])
        while event is not None:
            await send_part("body", body=event, more_body=True)
            try:
                event = await _next_event(call, responses)
            except Exception as error:  # noqa: BLE001 - the status is sent already
                await send_part("body", body=b"data: " + _describe(error)[0] + b"\n\n", more_body=True)
                break
    exchange.is_answered = True
    await send_part("body", body=b"", more_body=False)


async def _next_event(call: ModelCall, responses: AsyncGenerator[Outputs, None]) -> bytes | None:
    arrays, model = await anext(responses, None), call.model
    if arrays is None:
        return None
    return b"data: " + render_generated(model.name, call.head, arrays) + b"\n\n"
