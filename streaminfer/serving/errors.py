"""Errors as the two protocols say them.

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
"""gRPC has it in a header of up to 12 bytes a character, and libraries drop those above 8 KiB with the status."""


class RequestRejected(StreamInferError):  # noqa: N818 - named like `InvalidInput`
    """Raised for a request that the protocol rejects, whatever the model.

    Attributes:
        status: of HTTP.
        allow: the methods that the address has, with status 405.
        closes_connection: a part of the body was not read.
    """

    def __init__(self, status: int, message: str, *, allow: str = "", closes_connection: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow
        self.closes_connection = closes_connection


class Failure(NamedTuple):
    """What a client is told.

    Attributes:
        status: of HTTP.
        grpc_status: the name of gRPC's.
        text: in plain words, without internals; of a long one, as of what quotes a long name, the two ends.
        retry_after_s: whole seconds, at least 1; ``None``: the error is no matter of time.
        is_internal: the cause belongs in the log.
    """

    status: int
    grpc_status: str
    text: str
    retry_after_s: int | None = None
    is_internal: bool = False


def describe_failure(error: BaseException) -> Failure:
    """Return what the client of a failed request is told, by a server of yours too.

    Args:
        error: what the stack raised.
    """
    if isinstance(error, RequestRejected):
        return Failure(error.status, _GRPC[error.status], _text_of(error))
    for kind, status, grpc_status in _FAILURES:
        if isinstance(error, kind):
            retry_after_s = _whole_seconds(says_retry_after_s(error)) if status in _TEMPORARY else None
            return Failure(status, grpc_status, _text_of(error), retry_after_s)
    return Failure(500, "INTERNAL", _INTERNAL, is_internal=True)


def logged_failure(error: BaseException) -> Failure:
    """Return what the client of a failed request is told, and log what it is not."""
    failure = describe_failure(error)
    if failure.is_internal:
        _LOG.error("a request failed", exc_info=error)
    return failure


def _text_of(error: StreamInferError) -> str:
    text = text_of_error(error).partition(": ")[2]
    half = _LONGEST_TEXT // 2
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: half - 1]}…{text[-half:]}"
    return text.encode("utf-8", "replace").decode()  # names of files may have what no protocol can send


def _whole_seconds(seconds: float) -> int:
    return math.ceil(min(max(1.0, seconds), LONGEST_S))  # of a layer of yours it may be NaN or infinite
