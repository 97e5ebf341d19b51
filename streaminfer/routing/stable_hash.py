"""Hash of a key that decides where its requests go."""

import hashlib
from collections.abc import Hashable
from numbers import Integral

__all__ = ["HASH_SPAN", "stable_hash"]

HASH_SPAN = 2**64


def stable_hash(key: Hashable, salt: bytes = b"") -> int:
    """Return 64 bits that any keys fill evenly: the same ones in every process for text, bytes and whole numbers.

    Equal texts, bytes or whole numbers have the same, also where their types differ: text of an enumeration, a number
    of NumPy. Those of other keys are the same in this process only.

    Args:
        key: of a stream, a tenant or a replica.
        salt: another one gives another hash; at most 64 bytes.
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
