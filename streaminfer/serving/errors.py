"""Errors, as statuses of the two protocols.

=====================  ====  ======================  ===========================================
error                  HTTP  gRPC                    note
=====================  ====  ======================  ===========================================
`InvalidInput`         400   ``INVALID_ARGUMENT``
`RequestRejected`      its   its                     what the protocol, not the model, rejects
`Overloaded`           429   ``RESOURCE_EXHAUSTED``  with ``Retry-After``
`CircuitOpen`          503   ``UNAVAILABLE``         with ``Retry-After``
`Closed`               503   ``UNAVAILABLE``         with ``Retry-After``
`DeadlineExceeded`     504   ``DEADLINE_EXCEEDED``
`ErasureHeld`          409   ``FAILED_PRECONDITION``
everything else        500   ``INTERNAL``            the text is in the log, not in the response
=====================  ====  ======================  ===========================================
"""

import math
from typing import NamedTuple

from streaminfer._internal.error_log import Log
from streaminfer._internal.validation import LONGEST_S
from streaminfer.errors import (
    CircuitOpen,
    Closed,
    DeadlineExceeded,
    ErasureHeld,
    InvalidInput,
    Overloaded,
    StreamInferError,
    says_retry_after_s,
    text_of_error,
)

__all__ = ["Failure", "RequestRejected", "describe_failure", "logged_failure"]

_LOG = Log("streaminfer")
_INTERNAL = "the model failed; the server's log says why"
_GRPC = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    501: "UNIMPLEMENTED",
}
_FAILURES = (
    (InvalidInput, 400, "INVALID_ARGUMENT"),
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (Overloaded, 429, "RESOURCE_EXHAUSTED"),
    (CircuitOpen, 503, "UNAVAILABLE"),
    (Closed, 503, "UNAVAILABLE"),
    (ErasureHeld, 409, "FAILED_PRECONDITION"),
)
_TEMPORARY = {429, 503}
_LONGEST_TEXT = 600
"""Longest text: gRPC encodes it with up to 12 bytes per character, and libraries drop headers above 8 KiB."""


class RequestRejected(StreamInferError):  # noqa: N818 - named like `InvalidInput`
    """Raised when the protocol, or a limit of the server, rejects a request, whatever the model.

    Attributes:
        status: the HTTP status.
        allow: with status 405, the methods of the address.
        closes_connection: whether a part of the body was not read.
    """

    def __init__(self, status: int, message: str, *, allow: str = "", closes_connection: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow
        self.closes_connection = closes_connection


class Failure(NamedTuple):
    """Description of an error for the client.

    Attributes:
        status: the HTTP status.
        grpc_status: the name of the gRPC status.
        text: plain text without internals; of a long text, the start and the end.
        retry_after_s: whole seconds, at least 1; ``None``: the response does not say when to retry.
        is_internal: whether the cause belongs in the log.
    """

    status: int
    grpc_status: str
    text: str
    retry_after_s: int | None = None
    is_internal: bool = False


def describe_failure(error: BaseException) -> Failure:
    """Return the description of an error for the client; your own servers can use it too.

    Args:
        error: the exception of the stack.
    """
    if isinstance(error, RequestRejected):
        return Failure(error.status, _GRPC[error.status], _text_of(error))
    for kind, status, grpc_status in _FAILURES:
        if isinstance(error, kind):
            retry_after_s = _whole_seconds(says_retry_after_s(error)) if status in _TEMPORARY else None
            return Failure(status, grpc_status, _text_of(error), retry_after_s)
    return Failure(500, "INTERNAL", _INTERNAL, is_internal=True)


def logged_failure(error: BaseException) -> Failure:
    """Return the description of an error for the client, and log the cause of an internal error."""
    failure = describe_failure(error)
    if failure.is_internal:
        _LOG.error("a request failed", exc_info=error)
    return failure


def _text_of(error: StreamInferError) -> str:
    text = text_of_error(error).partition(": ")[2]
    half = _LONGEST_TEXT // 2
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: half - 1]}…{text[-half:]}"
    return text.encode("utf-8", "replace").decode()  # file names may have characters that no protocol can send


def _whole_seconds(seconds: float) -> int:
    return math.ceil(min(max(1.0, seconds), LONGEST_S))  # a user's layer may return NaN or infinity
