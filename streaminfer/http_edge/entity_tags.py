"""Entity tags (RFC 9110 §8.8.3): identifiers of one exact response, by which a cache revalidates its copy.

A *strong* tag means the same body, byte for byte. It is made of the encoded body, so it is correct even if the result
differs by batch, device or rounding. A *weak* tag means the same response, perhaps in other bytes. It can be made of a
content key, which covers the inputs and the version of the model, before any computation.

Both are xxh3-128 hashes. They need not resist forgery: a client that makes two responses of one address collide only
misleads itself about its own old copy.
"""

import re
from collections.abc import Callable
from typing import Any

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_instance

__all__ = ["compares_strongly", "compares_weakly", "entity_tag", "is_entity_tag"]

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ONE = re.compile(_TAG)
is_entity_tag = _ONE.fullmatch  # true for one well-formed tag
# OWS around elements, and empty elements, which a recipient has to accept (RFC 9110 §5.6.1.2). Each blank or comma is
# consumed in one way only, so the time is linear in the length.
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_digest: Callable[[Any], str] | None = None


def entity_tag(content: bytes | bytearray | memoryview, *, weak: bool = False) -> str:
    """Return the value of an ``ETag`` field.

    Args:
        content: for a strong tag, the body as sent, with its content coding; for a weak tag, bytes that identify the
            response, such as its ``content_key``.
        weak: whether the tag means the same response instead of the same bytes.

    Returns:
        34 characters, or 36 for a weak tag.

    Raises:
        TypeError: ``content`` is not bytes.
        MissingExtra: ``xxhash`` is not installed (``streaminfer[cache]``).

    Thread-safe.

    Example:
        >>> entity_tag(b"7"), entity_tag(b"key", weak=True)
        ('"dbd6a1e71414294c06eed105b82285fa"', 'W/"a4bdf4e564564cf8bbea0d63a05165e3"')
    """
    global _digest  # noqa: PLW0603 - imported at first use
    if _digest is None:
        _digest = require("xxhash", extra="cache", purpose="an entity tag").xxh3_128_hexdigest
    if not isinstance(content, bytes):
        check_instance("content", content, bytearray | memoryview, "bytes")
        if isinstance(content, memoryview) and not content.c_contiguous:
            content = content.tobytes()
    return f'W/"{_digest(content)}"' if weak else f'"{_digest(content)}"'


def compares_weakly(field: str, tag: str) -> bool:
    """Return whether a list of tags contains a tag, by the weak comparison of ``If-None-Match``.

    A malformed list contains no tag.
    """
    return tag.removeprefix("W/") in (each.removeprefix("W/") for each in _tags(field))


def compares_strongly(field: str, tag: str) -> bool:
    """Return whether a list of tags contains a tag, by the strong comparison of ``If-Match``."""
    return not tag.startswith("W/") and tag in _tags(field)


def _tags(field: str) -> list[str]:
    return _ONE.findall(field) if _LIST.fullmatch(field) else []
