"""All exceptions that streaminfer raises on purpose.

::

    StreamInferError
     ├── DeadlineExceeded   (also TimeoutError)   the request's deadline passed, or would be missed
     ├── Overloaded         (retry_after_s)       rejected or shed: a queue or limit is full
     ├── CircuitOpen        (retry_after_s)       rejected at once: the backend is known to fail
     ├── BackendError       (__cause__)           the model or function failed, or returned an impossible result
     │    └── SequenceLost                        the server lost the state of a stream (in backends.triton)
     ├── InvalidInput       (also ValueError)     the inputs or arguments of a request do not fit
     ├── Closed                                   the service is not running, or stopped before it could respond
     ├── ErasureHeld        (holds)               not erased: a legal hold or a minimum age forbids it
     └── MissingExtra       (also ImportError)    an optional dependency is missing; names the install command

Wrong *configuration* raises ``ValueError`` or ``TypeError`` with the argument, the expectation and the actual value;
wrong *use* (a second ``wrap``, another event loop) raises ``RuntimeError``.

If an error ends a whole batch, every caller gets a separate object (:func:`for_caller`): no caller sees the traceback
or the notes that another one adds.
"""

import copy
from typing import Any, Self, TypeVar

__all__ = [
    "BackendError",
    "CircuitOpen",
    "Closed",
    "DeadlineExceeded",
    "ErasureHeld",
    "InvalidInput",
    "MissingExtra",
    "Overloaded",
    "StreamInferError",
    "for_caller",
]

E = TypeVar("E", bound=BaseException)


class StreamInferError(Exception):
    """Base of all exceptions that streaminfer raises on purpose.

    Attributes:
        timings: the :class:`~streaminfer.request.Timings` of a request that failed with its batch, or as a row of it;
            ``None``: the request was in no batch, or its batch still runs.
    """

    timings: Any = None  # not `Timings | None`: the module of `Timings` imports this one


class DeadlineExceeded(StreamInferError, TimeoutError):  # noqa: N818 - the field's standard name
    """Raised when the deadline passed before a response was ready, or when no response could be ready by then."""


class _RejectedAtOnce(StreamInferError):  # noqa: N818
    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(_RejectedAtOnce):
    """Raised at once when a queue or a limit is full, or when a queued request is shed for a more urgent one.

    Attributes:
        retry_after_s: seconds after which a retry is expected to be accepted, estimated from recent batches; never
            negative. ``None``: unknown.
    """


class CircuitOpen(_RejectedAtOnce):
    """Raised at once when a circuit breaker is open because its backend is known to fail.

    Attributes:
        retry_after_s: seconds until the breaker permits the next probe; never negative. ``None``: unknown.
    """


class BackendError(StreamInferError):
    """Raised when the model or function failed, or returned an impossible result; ``__cause__`` holds the original."""


class InvalidInput(StreamInferError, ValueError):  # noqa: N818
    """Raised when the inputs or arguments of a request do not fit; no other request is affected."""


class Closed(StreamInferError):  # noqa: N818
    """Raised when the service has not started, has stopped, or stopped before it could respond."""


class ErasureHeld(StreamInferError):  # noqa: N818
    """Raised when nothing was erased, because a legal hold or a minimum age of the retention policy forbids it.

    Attributes:
        holds: descriptions of the holds, which name no person.
    """

    def __init__(self, holds: tuple[str, ...]) -> None:
        super().__init__(f"erase: nothing was erased; {'; '.join(holds)}; ask for it when that has ended")
        self.holds = holds

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...]]]:
        return type(self), (self.holds,)


class MissingExtra(StreamInferError, ImportError):  # noqa: N818
    """Raised when an optional dependency is not installed; the message has the install command."""


def says_retryable(error: BaseException | None) -> bool | None:
    """Return whether an error of any library says that a retry can help; ``None`` if it does not say."""
    value = getattr(error, "retryable", None)
    return value if isinstance(value, bool) else None


def says_retry_after_s(error: BaseException) -> float:
    """Return the seconds, ≥ 0, that an error of any library asks callers to wait before a retry; 0.0 if none."""
    value = getattr(error, "retry_after_s", None)
    return float(value) if isinstance(value, (int, float)) and value > 0.0 else 0.0


def copy_error(error: E) -> E:
    """Return a copy of an error that several callers get, so that none sees the traceback and notes of another.

    An error that cannot be copied is returned unchanged.
    """
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class that cannot be copied; its callers share the original
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error.__cause__
    own.__context__ = error.__context__
    own.__suppress_context__ = error.__suppress_context__
    own.__traceback__ = error.__traceback__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own


def text_of_error(error: BaseException) -> str:
    """Return the class and the message of an error; its ``__str__`` may fail."""
    try:
        text = str(error)
    except Exception as unprintable:  # noqa: BLE001 - a report of an error must not raise one
        text = f"its message cannot be shown ({type(unprintable).__name__})"
    return f"{type(error).__name__}: {text}"


def for_caller(error: BaseException, context: str) -> StreamInferError:
    """Return one caller's copy of an error that ended a whole batch.

    Args:
        error: the error of the backend or function.
        context: name of what raised it, for the message of a :class:`BackendError`.

    Returns:
        A copy of a :class:`StreamInferError`; a :class:`BackendError` with ``__cause__`` for anything else.
    """
    if isinstance(error, StreamInferError):
        own = copy_error(error)
        if own is not error:  # a user's subclass that cannot be copied is wrapped like any other error
            own.__traceback__ = own.__context__ = None
            return own
    failure = BackendError(f"{context} raised {text_of_error(error)}")
    failure.__cause__ = error
    return failure
