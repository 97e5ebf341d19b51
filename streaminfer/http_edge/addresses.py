"""Content-based addresses, which make the responses of inference requests cacheable over HTTP.

HTTP caches store responses to GET under the URL, but an inference request is a POST. Its URL for GET is therefore made
from the SHA-256 of the body. A client computes the URL, sends ``GET``, and posts the body only if ``GET`` finds
nothing. The origin responds to ``GET`` only with responses that it computed itself, for bodies that it hashed itself.
No client can therefore place a response under another request's URL; caches that trust a digest sent by a client can be
poisoned in that way. The hash is SHA-256 and not xxh3, because collisions must be impossible to construct, and because
every client has it.

The path also contains the version of the model. A new model has new addresses, so cached responses of the old one are
not requested any more.
"""

import hashlib
import re
from typing import Any

from streaminfer._internal.validation import check_instance, expected

__all__ = ["content_path"]

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_SEGMENT = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")


def content_path(body: bytes | bytearray | memoryview, *, version: str, prefix: str = "/v1/infer") -> str:
    """Return the path under which GET returns the response to a posted body.

    Args:
        body: the whole body of the request, as sent. All bodies under one prefix must have one content type, so that
            the same bytes have one meaning.
        version: of the model and of everything else that changes responses. Letters, digits, ``.``, ``_``, ``~`` and
            ``-``; must not begin with a dot.
        prefix: begins with a slash and does not end with one; its segments use the same characters.

    Returns:
        ``{prefix}/{version}/{64 hexadecimal digits}``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the version or prefix has other characters.

    Thread-safe.

    Example:
        >>> content_path(b"2.5", version="m7")
        '/v1/infer/m7/b8736b999909049671d0ea075a42b308a5fbe2df1854899123fe09eb0ee9de61'
    """
    _check("version", version, _SEGMENT, "letters, digits, . _ ~ or -, not beginning with a dot")
    _check("prefix", prefix, _PREFIX, "a path such as '/v1/infer', without a slash at its end")
    check_instance("body", body, bytes | bytearray | memoryview, "bytes")
    if isinstance(body, memoryview) and not body.c_contiguous:
        body = body.tobytes()
    return f"{prefix}/{version}/{hashlib.sha256(body).hexdigest()}"


def _check(name: str, value: Any, pattern: re.Pattern[str], expectation: str) -> None:
    check_instance(name, value, str, f"a string of {expectation}")
    if not pattern.fullmatch(value):
        raise ValueError(expected(name, expectation, value))
