"""A share of the requests: all requests of some keys, or requests that are evenly spread.

*Design.* A key is hashed to a number from 0 to 1 and belongs to the share while this number is below the share. So a
key keeps its side in every process and after a restart, and a share that grows keeps its keys. Requests without a key
are counted: each request adds the share to a sum, and the request that brings the sum to 1 belongs to the share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from streaminfer._internal.validation import check_number
from streaminfer.routing.stable_hash import HASH_SPAN, stable_hash

__all__ = ["RequestShare", "check_share"]

_TINY = 1e-9  # ten tenths must add up to one


def check_share(share: object) -> float:
    """Check and return a share of the requests.

    Raises:
        TypeError, ValueError: ``share`` is not a number from 0 to 1.
    """
    return check_number("share", share, "a share from 0 to 1", lambda it: 0.0 <= it <= 1.0)


class RequestShare:
    """Decides which requests belong to a share.

    Args:
        share: share of the requests, from 0 to 1.
        salt: with another salt, other keys belong to the share.

    Attributes:
        share: share of the requests; it can be changed at any time.
    """

    def __init__(self, share: float, salt: str) -> None:
        self.share = share
        self._salt = hashlib.blake2b(salt.encode()).digest()
        self._sum = 0.0

    def has_key(self, key: Hashable) -> bool:
        """Return whether a key belongs to the share; the same in every process for text, bytes and whole numbers."""
        return stable_hash(key, self._salt) / HASH_SPAN < self.share

    def would_take(self) -> bool:
        """Return whether the next request without a key belongs to the share; changes nothing."""
        return self._sum + self.share + _TINY >= 1.0

    def take(self) -> bool:
        """Count a request without a key and return whether it belongs to the share."""
        takes = self.would_take()
        self._sum += self.share - takes
        return takes
