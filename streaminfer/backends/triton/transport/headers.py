"""Headers of every call, such as a token; no error shows their values.

If gRPC or aiohttp rejects a header, its error message contains the header with its value; and a server may quote a
token that it rejects. Headers are therefore checked before they are sent, and the values that a call sent are removed
from texts that it gets back. Calls can be in flight with different tokens at the same time.
"""

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from streaminfer._internal.validation import check_instance
from streaminfer.backends.triton.errors import ServerError
from streaminfer.errors import BackendError

__all__ = ["Headers", "HeadersLike", "Sent", "raise_scrubbed", "scrub"]

HeadersLike = Mapping[str, str] | Callable[[], Mapping[str, str]]
Sent = tuple[tuple[str, str], ...]
"""The headers of one call: names in lower case, with their values."""

_NAME = re.compile(r"[a-z0-9_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_RESERVED = frozenset(
    ("content-length", "content-type", "host", "inference-header-content-length", "te", "transfer-encoding")
)
_SHORTEST_SECRET = 4  # characters; shorter values are words that any text may contain


class Headers:
    """The headers of every call; never shown.

    Args:
        given: headers by name, or a function that returns them and is called before each call, for tokens that rotate.
            ``None``: no headers.

    Raises:
        TypeError: neither of them, or a name or value is not a string.
        ValueError: a header cannot have this name or value; the message has the name, never the value.
    """

    def __init__(self, source: HeadersLike | None) -> None:
        expectation = "a mapping of names to values, a function that returns one, or None"
        if source is not None and not isinstance(source, Mapping) and not callable(source):
            # no repr: it may contain a token
            raise TypeError(f"headers: expected {expectation}, got {type(source).__name__}")
        self._make = None if source is None or isinstance(source, Mapping) else source
        self._fixed = _checked(source) if isinstance(source, Mapping) else ()

    def now(self) -> Sent:
        """Return the headers for a call.

        Raises:
            BackendError: the function that makes them failed, or returned something else than headers.
        """
        if self._make is None:
            return self._fixed
        try:
            headers = self._make()
            check_instance(
                "headers", type(headers), lambda kind: issubclass(kind, Mapping), "a mapping from the function"
            )
            return _checked(headers)
        except Exception as error:
            raise BackendError(f"headers: the function failed with {type(error).__name__}") from error

    def __repr__(self) -> str:
        return "Headers(not shown)"


def scrub(text: str, headers: Sent) -> str:
    """Remove the values of a call's headers from a text."""
    # the last word is the token of "Bearer token"
    secrets = {part for _, value in headers for part in (value, value.rpartition(" ")[2])}
    for secret in sorted(secrets, key=len, reverse=True):  # longest first: a value may contain another one
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def raise_scrubbed(
    headers: Sent, status: str, text: str, error: Exception, retry_after_s: float | None = None
) -> NoReturn:
    """Raise a failure without header values, while ``error`` is handled.

    An error with a value is neither cause nor context of the failure: tracebacks would show the value.

    Raises:
        ServerError: always.
    """
    redacted = scrub(text, headers)
    failure = ServerError(status, redacted, retry_after_s)
    try:
        raise failure from error if redacted == text else None
    finally:
        failure.__context__ = None
        del failure  # its traceback holds this frame, and thus the error


def _checked(unchecked: Mapping[str, str]) -> Sent:
    headers = []
    for name, value in unchecked.items():
        kinds = type(name), type(value)
        if not all(issubclass(kind, str) for kind in kinds):
            raise TypeError(f"headers: expected names and values that are strings, got {type(name).__name__} and "
                            f"{type(value).__name__}")  # fmt: skip
        lower = name.lower()
        if not _NAME.fullmatch(lower) or lower.endswith("-bin") or lower.startswith("grpc-"):
            raise ValueError(f"headers: expected names of letters, digits and -_., not reserved by gRPC, got {name!r}")
        if lower in _RESERVED:
            raise ValueError(f"headers: expected none that says how the message is sent, got {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"headers: expected printable ASCII as the value of {name!r}, got something else (not shown)"
            )
        headers.append((lower, value))
    return tuple(headers)
