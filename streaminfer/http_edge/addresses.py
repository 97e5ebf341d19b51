"""Addresses made of content: how an inference, which is asked with POST, becomes something that caches can repeat.

HTTP caches keep answers to GET, under the URL. So the question gets a URL: the SHA-256 of the body that would be
posted. A client computes it, asks ``GET``, and posts the body only where that finds nothing. The origin answers a
``GET`` only from what it has computed itself for a body of that digest, which it hashed itself. So no client can place
an answer under another's question, which is what poisons caches that trust a digest that a client sends along. SHA-256
and not xxh3, because collisions must not be makeable, and because every client has it.

The version of the model is in the path as well: a new model has new addresses, and all that caches hold of the old one
is never asked for again.
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
        body: the whole body of the request, as sent. All bodies under one prefix are of one content type: the same
            bytes mean one thing.
        version: of the model and of whatever else changes answers. Letters, digits, ``.``, ``_``, ``~`` and ``-``;
            it does not begin with a dot.
        prefix: begins with a slash and does not end with one; segments of the same characters.

    Returns:
        ``{prefix}/{version}/{64 hexadecimal digits}``.

    Raises:
        TypeError: an argument of another type.
        ValueError: a version or prefix with other characters.

    Threads: any number at once.

    Example:
        >>> content_path(b"2.5", version="m7")
        '/v1/infer/m7/b8736b999909049671d0ea075a42b308a5fbe2df1854899123fe09eb0ee9de61'
    """
    _check("version", version, _SEGMENT, "letters, digits, . _ ~ or -, not beginning with a dot")
    _check("prefix", prefix, _PREFIX, "a path such as '/v1/infer', without a slash at its end")
    check_instance("body", body, lambda it: isinstance(it, bytes | bytearray | memoryview), "bytes")
    if isinstance(body, memoryview) and not body.c_contiguous:
        body = body.tobytes()
    return f"{prefix}/{version}/{hashlib.sha256(body).hexdigest()}"


def _check(name: str, value: Any, pattern: re.Pattern[str], what: str) -> None:
    check_instance(name, value, lambda it: isinstance(it, str), f"a string of {what}")
    if not pattern.fullmatch(value):
        raise ValueError(expected(name, what, value))
