"""Raw bytes of all keys of a namespace, found by SCAN and not by an index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["SCAN_CHUNK", "literally", "read_raw"]

SCAN_CHUNK = 256


def literally(text: bytes) -> bytes:
    """Return a pattern that matches this text and no other."""
    return b"".join(b"\\" + bytes((byte,)) if byte in b"*?[]\\^-" else bytes((byte,)) for byte in text)


def read_raw(server: Any, prefix: bytes) -> Iterator[bytes]:
    """Yield each key that begins with a prefix, and all bytes under it.

    Args:
        server: a blocking client.
        prefix: of the keys.
    """
    for key in server.scan_iter(match=literally(prefix) + b"*", count=SCAN_CHUNK):
        yield key
        match server.type(key):
            case b"string":
                yield server.get(key) or b""
            case b"hash":
                for name, value in server.hscan_iter(key, count=SCAN_CHUNK):
                    yield from (name, value)
            case b"set":
                yield from server.sscan_iter(key, count=SCAN_CHUNK)
            case b"zset":
                yield from (member for member, _ in server.zscan_iter(key, count=SCAN_CHUNK))
            case b"list":
                yield from server.lrange(key, 0, -1)
            case b"stream":
                for _, fields in server.xrange(key):
                    yield from (*fields, *fields.values())
