"""Hash of a key, which decides where the requests of the key go."""

import hashlib
from collections.abc import Hashable
from numbers import Integral

__all__ = ["HASH_SPAN", "stable_hash"]

HASH_SPAN = 2**64


def stable_hash(key: Hashable, salt: bytes = b"") -> int:
    """Return a hash of 64 bits, evenly spread; for text, bytes and whole numbers it is the same in every process.

    Equal texts, bytes or whole numbers have the same hash even if their types differ, such as the text of an
    enumeration or a number of NumPy. The hash of any other key is the same only in this process.

    Args:
        key: key of a stream, a tenant or a replica.
        salt: another salt gives another hash; at most 64 bytes.
    """
    plain: str | bytes | int
    if isinstance(key, str):
        plain = str.__str__(key)
    elif isinstance(key, bytes):
        plain = bytes(key)
    elif isinstance(key, Integral):
        plain = int(key)
    else:
        plain = hash(key)  # of a `uuid.UUID` it fills 61 of the 64 bits, of an object fewer
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8, key=salt).digest(), "big")
