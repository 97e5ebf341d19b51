"""Errors of a server or its connection, as errors of the package.

Errors of both protocols become a :class:`ServerError`: the canonical name of a gRPC status and a text. One function,
:func:`from_status`, decides which error callers get:

=====================  =====================================================================================
status                 becomes
=====================  =====================================================================================
``DEADLINE_EXCEEDED``  `DeadlineExceeded`
``UNAVAILABLE``        `Overloaded` if a queue was full or the server says when to retry, `DeadlineExceeded` if the
                       server's own queue timeout passed, else `BackendError`: it cannot be reached, or stops
``RESOURCE_EXHAUSTED`` `Overloaded`, unless a message was too large
``INVALID_ARGUMENT``   `InvalidInput`
everything else        `BackendError`
=====================  =====================================================================================

The time after which to retry (``Retry-After`` of HTTP, ``retry-after`` and ``grpc-retry-pushback-ms`` of gRPC) becomes
``Overloaded.retry_after_s``.

``NOT_FOUND`` is not a permanent state: Triton responds so after SIGTERM, and while a model is reloaded. If a retry
cannot succeed (no such method, no permission), the error has ``retryable = False``, which `RetryBudget` reads.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime

from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput, Overloaded, StreamInferError

__all__ = [
    "ModelNotReady",
    "ServerError",
    "explained",
    "from_status",
    "is_not_loaded",
    "of_http_status",
    "of_text",
    "outgrown",
    "retry_after",
    "too_large",
]

_FULL = ("exceeds maximum queue size", "queue full", "too many pending requests")
_TOO_LARGE = ("larger than max", "too large")
_OUTPUT_TOO_LARGE = ("shared memory size specified with the request for output", "bytes of shared memory, got")
_EXPIRED = ("request timeout expired", "timeout expired")
_PERMANENT = frozenset(("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"))
_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
# in many versions, Triton's HTTP front end said 400 for every failure, and gRPC errors on a stream have no status:
# these texts tell which of these errors are not caused by the input
_STATUS_BY_TEXT = {
    "unknown model": "NOT_FOUND",
    "is not found": "NOT_FOUND",
    "is not ready": "UNAVAILABLE",
    "stub process": "INTERNAL",
    "exceeds maximum queue size": "UNAVAILABLE",
    "request timeout expired": "UNAVAILABLE",
}


class ModelNotReady(BackendError):  # noqa: N818 - named as its siblings
    """Raised when the model is in the server's repository, but not ready in memory."""


class ServerError(Exception):
    """Failure of a server or its connection.

    Attributes:
        status: the canonical name of a gRPC status.
        text: the text of the server or the transport.
        retry_after_s: seconds after which to retry; ``None``: the server does not say.
    """

    def __init__(self, status: str, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text
        self.retry_after_s = retry_after_s

    def says(self, words: Iterable[str]) -> bool:
        """Return whether the text has one of these words or phrases, which are in lower case."""
        text = self.text.lower()
        return any(each in text for each in words)


def retry_after(value: str | None, *, seconds: float = 1.0) -> float | None:
    """Return the seconds after which to retry; ``None`` if the value cannot be read.

    Args:
        value: a number, or an HTTP date.
        seconds: the unit of the number, in seconds.
    """
    if value is None:
        return None
    try:
        after_s = float(value) * seconds
    except ValueError:
        try:
            after_s = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(after_s, 0.0) if math.isfinite(after_s) else None


def too_large(failure: ServerError) -> bool:
    """Return whether the message is too large for the server, so that fewer rows may fit."""
    return failure.status == "RESOURCE_EXHAUSTED" and failure.says(_TOO_LARGE)


def outgrown(failure: ServerError) -> bool:
    """Return whether an output does not fit into its shared memory, because it differs from the model's description."""
    return failure.status == "INTERNAL" and failure.says(_OUTPUT_TOO_LARGE)


def is_not_loaded(failure: ServerError) -> bool:
    """Return whether the server responds, but does not have the model in memory."""
    return failure.status == "NOT_FOUND" and failure.says(["unknown model"])


def of_http_status(status: int, text: str) -> str:
    """Return the canonical name for an HTTP status other than 200."""
    name = _HTTP.get(status, "INTERNAL" if status >= 500 else "UNKNOWN")
    return of_text(text, name) if name == "INVALID_ARGUMENT" else name


def of_text(text: str, default: str) -> str:
    """Return the canonical name for a failure that is known only by its text; ``default`` if the text is unknown."""
    lower = text.lower()
    return next((name for words, name in _STATUS_BY_TEXT.items() if words in lower), default)


def from_status(failure: ServerError, description: str, *, has_inputs: bool = True) -> StreamInferError:
    """Return the error for callers; its ``__cause__`` is the transport's error.

    Args:
        failure: the failure of the server or its connection.
        description: the backend and the request, for the message.
        has_inputs: whether the call had inputs of a caller, so that they can be the cause.
    """
    status, text = failure.status, failure.text
    error: StreamInferError
    if status == "DEADLINE_EXCEEDED" or (status == "UNAVAILABLE" and failure.says(_EXPIRED)):
        error = DeadlineExceeded(f"{description}: the deadline passed before the server responded ({text})")
    elif too_large(failure):
        error = BackendError(f"{description}: the message is larger than the server takes: {text}")
        error.retryable = False  # type: ignore[attr-defined]
    elif status == "RESOURCE_EXHAUSTED" or (
        status == "UNAVAILABLE" and (failure.retry_after_s is not None or failure.says(_FULL))
    ):
        error = Overloaded(f"{description}: the server's queue is full: {text}", retry_after_s=failure.retry_after_s)
    elif status == "INVALID_ARGUMENT" and has_inputs:
        error = InvalidInput(f"{description}: the server rejected it: {text}")
    else:
        error = BackendError(f"{description} failed with {status}: {text}")
        if status in _PERMANENT:
            error.retryable = False  # type: ignore[attr-defined]
    error.__cause__ = failure.__cause__ or failure
    return error


@contextlib.contextmanager
def explained(action: str) -> Iterator[None]:
    """Raise the error for callers in place of a server's error; for calls without inputs.

    Args:
        action: the action, for the message.
    """
    try:
        yield
    except ServerError as failure:
        raise from_status(failure, action, has_inputs=False) from failure.__cause__
