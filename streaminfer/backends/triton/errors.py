"""What a server or the way to it answered instead of an answer, as the one tree of errors.

Both protocols are read into one form, :class:`ServerError`: the canonical name of a gRPC status and a text. What it
means
is decided in one place:

=====================  =====================================================================================
status                 becomes
=====================  =====================================================================================
``DEADLINE_EXCEEDED``  `DeadlineExceeded`
``UNAVAILABLE``        `Overloaded` where a queue was full or the server says when to come again,
                       `DeadlineExceeded` where the server's own queue timeout passed, else `BackendError`: it cannot
                       be reached, or stops
``RESOURCE_EXHAUSTED`` `Overloaded`, unless a message was too large
``INVALID_ARGUMENT``   `InvalidInput`
everything else        `BackendError`
=====================  =====================================================================================

When to come again (``Retry-After`` of HTTP, ``retry-after`` and ``grpc-retry-pushback-ms`` of gRPC) is what
`Overloaded` says as ``retry_after_s``.

``NOT_FOUND`` is no permanent state: Triton answers it after SIGTERM, and while a model is reloaded. What asking again
cannot mend (no such method, no permission) is marked ``retryable = False``, which `RetryBudget` reads.
"""

import math
import time
from email.utils import parsedate_to_datetime

from streaminfer.errors import BackendError, DeadlineExceeded, InvalidInput, Overloaded, StreamInferError

__all__ = ["ServerError", "from_status", "of_http_status", "retry_after", "too_large", "without_input"]

_FULL = ("exceeds maximum queue size", "queue full", "too many pending requests")
_TOO_LARGE = ("larger than max", "too large")
_EXPIRED = ("request timeout expired", "timeout expired")
_HOPELESS = frozenset(("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"))
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
# Triton's HTTP front said 400 whatever it was for many versions: what a batch cannot be blamed for, by the text
_NOT_THE_INPUT = {
    "unknown model": "NOT_FOUND",
    "is not found": "NOT_FOUND",
    "is not ready": "UNAVAILABLE",
    "stub process": "INTERNAL",
    "exceeds maximum queue size": "UNAVAILABLE",
}


class ServerError(Exception):
    """What came instead of an answer.

    Attributes:
        status: the canonical name of a gRPC status.
        text: what the server or the transport said.
        retry_after_s: seconds after which the server wants to be called again; ``None``: it does not say.
    """

    def __init__(self, status: str, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text
        self.retry_after_s = retry_after_s


def retry_after(said: str | None, *, seconds: float = 1.0) -> float | None:
    """Seconds until a server wants to be called again; ``None``: it says nothing that can be read.

    Args:
        said: a number, or a date of HTTP.
        seconds: what a unit of the number is.
    """
    if said is None:
        return None
    try:
        after_s = float(said) * seconds
    except ValueError:
        try:
            after_s = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    return max(after_s, 0.0) if math.isfinite(after_s) else None


def too_large(refused: ServerError) -> bool:
    """Whether the server does not take so large a message: fewer rows may pass."""
    return refused.status == "RESOURCE_EXHAUSTED" and any(words in refused.text.lower() for words in _TOO_LARGE)


def of_http_status(status: int, text: str) -> str:
    """The canonical name for an HTTP status other than 200."""
    name = _HTTP.get(status, "INTERNAL" if status >= 500 else "UNKNOWN")
    if name == "INVALID_ARGUMENT":
        lower = text.lower()
        for words, other in _NOT_THE_INPUT.items():
            if words in lower:
                return other
    return name


def from_status(refused: ServerError, what: str) -> StreamInferError:
    """The error that callers get; its ``__cause__`` is the transport's own.

    Args:
        refused: what came.
        what: who answered, and to what.
    """
    status, text = refused.status, refused.text
    lower = text.lower()
    error: StreamInferError
    if status == "DEADLINE_EXCEEDED" or (status == "UNAVAILABLE" and any(words in lower for words in _EXPIRED)):
        error = DeadlineExceeded(f"{what}: the deadline passed before the server answered ({text})")
    elif too_large(refused):
        error = BackendError(f"{what}: the message is larger than the server takes: {text}")
        error.retryable = False  # type: ignore[attr-defined]
    elif status == "RESOURCE_EXHAUSTED" or (
        status == "UNAVAILABLE" and (refused.retry_after_s is not None or any(words in lower for words in _FULL))
    ):
        after_s = refused.retry_after_s or 0.0
        error = Overloaded(f"{what}: the server has no place for it: {text}", retry_after_s=after_s)
    elif status == "INVALID_ARGUMENT":
        error = InvalidInput(f"{what}: the server refused it: {text}")
    else:
        error = BackendError(f"{what} failed with {status}: {text}")
        if status in _HOPELESS:
            error.retryable = False  # type: ignore[attr-defined]
    error.__cause__ = refused.__cause__ or refused
    return error


def without_input(refused: ServerError, what: str) -> StreamInferError:
    """The same for a question that carries nobody's input: a refusal is the server's or the configuration's fault."""
    error = from_status(refused, what)
    if isinstance(error, InvalidInput):
        cause, error = error.__cause__, BackendError(f"{what} failed with {refused.status}: {refused.text}")
        error.__cause__ = cause
    return error
