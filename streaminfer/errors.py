"""Every exception that streaminfer raises on purpose.

::

    StreamInferError
     ├── DeadlineExceeded   (also TimeoutError)   the request's deadline passed, or would be missed
     ├── Overloaded         (retry_after_s)       refused at once: no place for it
     ├── CircuitOpen        (retry_after_s)       refused at once: what it would ask is known to be broken
     ├── BackendError       (__cause__)           the model or function failed, or answered something impossible
     │    └── SequenceLost                        what a server kept for a stream is gone (in backends.triton)
     ├── InvalidInput       (also ValueError)     what the caller brought does not fit the model
     ├── Closed                                   the service stopped before it could answer
     ├── ErasureHeld        (holds)               not erased: a legal hold or a minimum age forbids it
     └── MissingExtra       (also ImportError)    an optional dependency is needed; says the install command

Wrong *configuration* raises ``ValueError`` or ``TypeError`` that name the argument, what was expected and what came;
wrong *use* (a second ``wrap``, another event loop) raises ``RuntimeError``.

An error that ends a whole batch reaches every caller as an object of its own (:func:`for_caller`): tracebacks and
notes that one caller adds are not seen by another.
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
            ``None``: no batch had it, or that batch still runs.
    """

    timings: Any = None  # the module of `Timings` imports this one


class DeadlineExceeded(StreamInferError, TimeoutError):  # noqa: N818 - the field's standard name
    """The deadline of the request passed before a response was there, or none could be there by then."""


class _RejectedAtOnce(StreamInferError):  # noqa: N818
    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(_RejectedAtOnce):
    """The request was refused at once because there was no place for it.

    Attributes:
        retry_after_s: seconds after which a place is expected, measured from recent batches; never negative. ``None``:
            unknown.
    """


class CircuitOpen(_RejectedAtOnce):
    """The request was refused at once because what it would ask is known to be broken.

    Attributes:
        retry_after_s: seconds until the next probe is let through; never negative. ``None``: unknown.
    """


class BackendError(StreamInferError):
    """The model or function failed, or answered something impossible; ``__cause__`` holds the original."""


class InvalidInput(StreamInferError, ValueError):  # noqa: N818
    """What the caller brought does not fit the model; no other request is affected."""


class Closed(StreamInferError):  # noqa: N818
    """The service is not running: not started yet, stopped, or stopped before it could answer."""


class ErasureHeld(StreamInferError):  # noqa: N818
    """Nothing was erased: a legal hold, or a minimum age of the retention policy, forbids it.

    Attributes:
        holds: what holds it, in words that name no person.
    """

    def __init__(self, holds: tuple[str, ...]) -> None:
        super().__init__(f"erase: nothing was erased; {'; '.join(holds)}; ask for it when that has ended")
        self.holds = holds

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...]]]:
        return type(self), (self.holds,)


class MissingExtra(StreamInferError, ImportError):  # noqa: N818
    """An optional dependency is not installed; the message says the install command."""


def says_retryable(error: BaseException | None) -> bool | None:
    """Return whether an error, of whatever library, says that a retry can help; ``None``: it does not say."""
    said = getattr(error, "retryable", None)
    return said if isinstance(said, bool) else None


def says_retry_after_s(error: BaseException) -> float:
    """Return after how many seconds, ≥ 0, an error of whatever library wants a retry; 0.0: it does not say."""
    said = getattr(error, "retry_after_s", None)
    return float(said) if isinstance(said, (int, float)) and said > 0.0 else 0.0


def copy_error(error: E) -> E:
    """Return one caller's copy of an error that several get: the traceback and notes that one adds are not another's.

    An error that cannot be copied is returned itself.
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
    """Return an error's class and message, also where the message cannot be shown."""
    try:
        text = str(error)
    except Exception as unprintable:  # noqa: BLE001 - whoever tells of the error is not to fail for it
        text = f"its message cannot be shown ({type(unprintable).__name__})"
    return f"{type(error).__name__}: {text}"


def for_caller(error: BaseException, context: str) -> StreamInferError:
    """One caller's own copy of an error that ended a whole batch.

    Args:
        error: what the backend or function raised.
        context: who raised it, for the message of a :class:`BackendError`.

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
